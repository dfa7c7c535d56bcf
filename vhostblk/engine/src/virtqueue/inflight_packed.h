/* SPDX-License-Identifier: Apache-2.0 */
/* Which requests of a packed queue are in flight, noted in memory that outlives this process.
 *
 * Layout and order of the stores are those of the vhost-user specification, "Inflight I/O tracking";
 * `vhostblk.virtqueue.inflight_packed` says how they work, and reads what an earlier process has left.
 * Fields that change together are stored at once. Nothing is read from the record here: the links of
 * its list are known from a copy.
 */
#ifndef VHOSTBLK_INFLIGHT_PACKED_H
#define VHOSTBLK_INFLIGHT_PACKED_H

#include <stddef.h>
#include <stdint.h>

#include "packed.h"

struct vb_inflight_packed_desc {
    uint8_t inflight;
    uint8_t padding;
    uint16_t next;
    uint16_t last;
    uint16_t num;
    uint64_t counter;
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
};

struct vb_inflight_packed_region {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint32_t heads;  /* free_head and old_free_head */
    uint64_t places; /* used_idx and old_used_idx, 16 bits each; their wrap counters, 8 bits each */
    uint64_t padding;
    struct vb_inflight_packed_desc desc[];
};

_Static_assert(sizeof(struct vb_inflight_packed_desc) == 32, "DescStatePacked");
_Static_assert(offsetof(struct vb_inflight_packed_region, heads) == 12, "QueueRegionPacked");
_Static_assert(offsetof(struct vb_inflight_packed_region, places) == 16, "QueueRegionPacked");
_Static_assert(offsetof(struct vb_inflight_packed_region, desc) == 32, "QueueRegionPacked");

#define VB_NO_ENTRY UINT16_MAX

struct vb_inflight_packed {
    struct vb_inflight_packed_region *region; /* NULL: nothing is noted */
    uint64_t counter;
    uint16_t *links;       /* the entry behind each entry of the free list, and of each chain */
    uint16_t *first;       /* of each chain not shown as used yet, by buffer id; else VB_NO_ENTRY */
    uint16_t *last;        /* likewise */
    uint16_t free_head;
    uint16_t old_free_head;
    uint64_t old_places; /* shifted to where they are stored */
};

/* Where the ring is used up to now, as the new or the old place. */
static inline uint64_t vb_inflight_packed_places(const struct vb_ring *ring, bool old)
{
    return (uint64_t)ring->next_used << (old ? 16 : 0) | (uint64_t)ring->used_wrap
                                                             << (old ? 40 : 32);
}

static inline void vb_inflight_packed_take(struct vb_inflight_packed *inflight, uint16_t id,
                                           const struct vb_packed_desc *descs, uint32_t count)
{
    struct vb_inflight_packed_region *region = inflight->region;
    uint16_t entry = inflight->free_head, last = entry;
    struct vb_inflight_packed_desc *head = &region->desc[entry];

    inflight->first[id] = entry;
    for (uint32_t i = 0; i < count; i++) {
        struct vb_inflight_packed_desc *desc = &region->desc[entry];

        desc->addr = descs[i].addr;
        desc->len = descs[i].len;
        desc->flags = descs[i].flags;
        desc->id = descs[i].id;
        last = entry;
        entry = inflight->links[entry];
    }
    inflight->last[id] = last;
    head->num = (uint16_t)count;
    head->last = last;
    head->counter = inflight->counter++;
    __atomic_store_n(&head->inflight, 1, __ATOMIC_RELEASE);
    inflight->free_head = inflight->old_free_head = entry;
    __atomic_store_n(&region->heads, entry | (uint32_t)entry << 16, __ATOMIC_RELEASE);
}

/* Before the ring shows `count` chains, whose ids are in `done`. */
static inline void vb_inflight_packed_link(struct vb_inflight_packed *inflight,
                                           const struct vb_ring *ring, const uint16_t *done,
                                           uint32_t count)
{
    struct vb_inflight_packed_region *region = inflight->region;
    uint16_t head = inflight->free_head;

    for (uint32_t i = 0; i < count; i++) {
        uint16_t last = inflight->last[done[i]];

        inflight->links[last] = head;
        __atomic_store_n(&region->desc[last].next, head, __ATOMIC_RELAXED);
        head = inflight->first[done[i]];
    }
    inflight->free_head = head;
    __atomic_store_n(&region->heads, head | (uint32_t)inflight->old_free_head << 16,
                     __ATOMIC_RELEASE);
    __atomic_store_n(&region->places,
                     vb_inflight_packed_places(ring, false) | inflight->old_places,
                     __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* After the ring has shown them. */
static inline void vb_inflight_packed_strike_out(struct vb_inflight_packed *inflight,
                                                 const struct vb_ring *ring,
                                                 const uint16_t *done, uint32_t count)
{
    struct vb_inflight_packed_region *region = inflight->region;

    __atomic_thread_fence(__ATOMIC_RELEASE);
    for (uint32_t i = 0; i < count; i++) {
        __atomic_store_n(&region->desc[inflight->first[done[i]]].inflight, 0, __ATOMIC_RELAXED);
        inflight->first[done[i]] = VB_NO_ENTRY;
    }
    inflight->old_free_head = inflight->free_head;
    inflight->old_places = vb_inflight_packed_places(ring, true);
    __atomic_store_n(&region->heads, inflight->free_head | (uint32_t)inflight->free_head << 16,
                     __ATOMIC_RELEASE);
    __atomic_store_n(&region->places,
                     vb_inflight_packed_places(ring, false) | inflight->old_places,
                     __ATOMIC_RELEASE);
}

#endif
