/* SPDX-License-Identifier: Apache-2.0 */
/* The device side of a packed virtqueue (VIRTIO 1.3, section 2.8).
 *
 * The twin of `vhostblk.virtqueue.packed`, which says how the ring works and what is judged. A chain is
 * copied from the ring once, whole; the copy is walked. Used descriptors go to the ring as requests
 * complete, but for the flags of the first one since the driver was last shown some: until these are
 * stored it goes no further.
 */
#ifndef VHOSTBLK_PACKED_H
#define VHOSTBLK_PACKED_H

#include "ring.h"

#define VB_PACKED_AVAIL (1 << 7)
#define VB_PACKED_USED (1 << 15)
#define VB_PACKED_OWNER (VB_PACKED_AVAIL | VB_PACKED_USED)
#define VB_PACKED_WRAP (1 << 15)

/* An event suppression area: where, if that is asked for, and whether. */
struct vb_packed_event {
    uint16_t place;
    uint16_t flags;
};

static inline struct vb_packed_desc *vb_packed_ring(const struct vb_ring *ring)
{
    return (struct vb_packed_desc *)(uintptr_t)ring->desc;
}

static inline bool vb_packed_available(const struct vb_ring *ring)
{
    uint16_t flags =
        __atomic_load_n(&vb_packed_ring(ring)[ring->next_avail].flags, __ATOMIC_ACQUIRE);

    /* A full ring has nothing to take, whatever its flags say. */
    return (flags & VB_PACKED_OWNER) == (ring->avail_wrap ? VB_PACKED_AVAIL : VB_PACKED_USED) &&
           ring->taken < ring->size;
}

/* Copy the chain that is available now; `into` has room for all of the ring. Returns its length; 0: it
 * has no end, or runs into chains in flight. */
uint32_t vb_packed_copy(const struct vb_ring *ring, struct vb_packed_desc *into);

/* `count` descriptors have been taken. */
static inline void vb_packed_advance(struct vb_ring *ring, uint32_t count)
{
    uint32_t next = ring->next_avail + count;

    ring->taken += count;
    if (next >= ring->size) {
        next -= ring->size;
        ring->avail_wrap ^= 1;
    }
    ring->next_avail = (uint16_t)next;
}

/* Write a used descriptor for a chain of `count`; the driver sees it after `vb_packed_publish`. */
static inline void vb_packed_put_used(struct vb_ring *ring, uint16_t id, uint32_t length,
                                      uint32_t count)
{
    struct vb_packed_desc *desc = &vb_packed_ring(ring)[ring->next_used];
    uint16_t flags = (ring->used_wrap ? VB_PACKED_OWNER : 0) | (length ? VB_DESC_F_WRITE : 0);
    uint32_t next = ring->next_used + count;

    desc->len = length;
    desc->id = id;
    if (ring->unshown) {
        __atomic_store_n(&desc->flags, flags, __ATOMIC_RELAXED);
    } else {
        ring->first_unshown = ring->next_used;
        ring->first_flags = flags;
    }
    ring->unshown += count;
    if (next >= ring->size) {
        next -= ring->size;
        ring->used_wrap ^= 1;
    }
    ring->next_used = (uint16_t)next;
}

/* Show the used descriptors to the driver; tell whether it wants to be notified. */
bool vb_packed_publish(struct vb_ring *ring);

void vb_packed_enable_kicks(struct vb_ring *ring);
void vb_packed_disable_kicks(struct vb_ring *ring);

/* What SET_VRING_BASE says of such a ring. */
uint32_t vb_packed_base(const struct vb_ring *ring);

#endif
