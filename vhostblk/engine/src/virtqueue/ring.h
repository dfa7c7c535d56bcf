/* SPDX-License-Identifier: Apache-2.0 */
/* Walking descriptor chains, and taking them from a split virtqueue and giving them back.
 *
 * Each descriptor is copied from guest memory once; the copy is validated and used, so a guest that
 * changes it meanwhile changes nothing. The verdicts are those of `vhostblk.virtqueue.walker`, to
 * the letter: tests hold the two against each other.
 */
#ifndef VHOSTBLK_RING_H
#define VHOSTBLK_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "guest_memory.h"
#include "ring.cdef.h"

/* `vhostblk.virtqueue.errors.ChainFault`. */
enum vb_chain_fault {
    VB_FAULT_NONE,
    VB_FAULT_NEXT_OUT_OF_RANGE,
    VB_FAULT_TOO_LONG,
    VB_FAULT_INDIRECT_LENGTH,
    VB_FAULT_INDIRECT_NESTED,
    VB_FAULT_INDIRECT_UNMAPPED,
    VB_FAULT_ORDER,
    VB_FAULT_UNMAPPED,
};

/* Longest chain and longest indirect table: Linux's UIO_MAXIOV, as in QEMU. It holds in longer queues
 * too. */
#define VB_MAX_CHAIN 1024

/* Most regions that one buffer may lie in. */
#define VB_MAX_PIECES 8

/* A chain's segments, device-readable ones first; none is empty. Of a broken chain they are those
 * walked up to there. The array grows and is used again. */
struct vb_chain {
    struct iovec *iovs; /* iov_base NULL where not mapped */
    uint32_t count;
    uint32_t readable;
    uint32_t capacity;
    uint8_t fault;
};

#define VB_DESC_F_NEXT 1
#define VB_DESC_F_WRITE 2
#define VB_DESC_F_INDIRECT 4

struct vb_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct vb_used_elem {
    uint32_t id;
    uint32_t len;
};

/* Places in the used ring, in bytes. */
enum { VB_USED_INDEX = 2, VB_USED_ELEMENTS = 4 };

/* Walk the chain at `head`, which is below ring->size. False: out of memory. */
bool vb_chain_walk(struct vb_chain *chain, const struct vb_ring *ring, struct vb_memory *memory,
                   uint16_t head);
/* Walk a chain of a packed ring, whose `count` descriptors have been copied from there. */
bool vb_packed_walk(struct vb_chain *chain, struct vb_memory *memory,
                    const struct vb_packed_desc *descs, uint32_t count);
void vb_chain_free(struct vb_chain *chain);

static inline uint16_t vb_ring_avail_index(const struct vb_ring *ring)
{
    return __atomic_load_n((const uint16_t *)(ring->avail + 2), __ATOMIC_ACQUIRE);
}

/* Chains that the driver has made available; more than ring->size: the ring is broken. */
static inline uint16_t vb_ring_available(const struct vb_ring *ring)
{
    return (uint16_t)(vb_ring_avail_index(ring) - ring->next_avail);
}

static inline uint16_t vb_ring_head(const struct vb_ring *ring, uint16_t index)
{
    const volatile uint16_t *entries = (const volatile uint16_t *)(ring->avail + 4);

    return entries[index & (ring->size - 1)];
}

/* Write a used element; the driver sees it after `vb_ring_publish`. */
static inline void vb_ring_put_used(struct vb_ring *ring, uint16_t head, uint32_t length)
{
    struct vb_used_elem *elements = (struct vb_used_elem *)(ring->used + 4);

    elements[ring->next_used & (ring->size - 1)] = (struct vb_used_elem){head, length};
    ring->next_used++;
}

/* Show the last `count` used elements to the driver; tell whether it wants to be notified. */
bool vb_ring_publish(struct vb_ring *ring, uint16_t count);

/* Ask for a kick at the next available chain (then look again), or for none. */
void vb_ring_enable_kicks(struct vb_ring *ring);
void vb_ring_disable_kicks(struct vb_ring *ring);

#endif
