/* SPDX-License-Identifier: Apache-2.0 */
/* Which requests of a queue are in flight, noted in memory that outlives this process; how those of a
 * split queue are noted.
 *
 * Layout and order of the stores are those of the vhost-user specification, "Inflight I/O tracking";
 * `vhostblk.virtqueue.inflight` says what they are good for, and reads what an earlier process has
 * left. The process may be killed between any two stores: what counts is the order of instructions,
 * which release stores keep the compiler from changing. Nothing is read from the record here.
 */
#ifndef VHOSTBLK_INFLIGHT_H
#define VHOSTBLK_INFLIGHT_H

#include <stddef.h>
#include <stdint.h>

struct vb_inflight_desc {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};

struct vb_inflight_region {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct vb_inflight_desc desc[];
};

_Static_assert(sizeof(struct vb_inflight_desc) == 16, "DescStateSplit");
_Static_assert(offsetof(struct vb_inflight_region, desc) == 16, "QueueRegionSplit");

struct vb_inflight {
    struct vb_inflight_region *region; /* NULL: nothing is noted, or the ring is packed */
    uint64_t counter;
    uint16_t *done; /* heads used and not shown to the driver yet; room for all of the ring's */
    uint16_t mask;  /* a split ring's size - 1: a driver that breaks the rules can use a head twice */
    uint16_t last_batch_head;
    uint16_t *left; /* heads that an earlier process left in flight, those still to be taken */
    uint16_t left_count;
    uint16_t left_taken;
    const struct vb_packed_left *packed_left; /* likewise, of a packed ring */
    const struct vb_packed_desc *left_descs;  /* those of the next one */
};

static inline void vb_inflight_take(struct vb_inflight *inflight, uint16_t head)
{
    struct vb_inflight_desc *desc = &inflight->region->desc[head];

    __atomic_store_n(&desc->counter, inflight->counter++, __ATOMIC_RELAXED);
    __atomic_store_n(&desc->inflight, 1, __ATOMIC_RELEASE);
}

/* Before the used index shows `count` heads, which are in `done`. */
static inline void vb_inflight_link(struct vb_inflight *inflight, uint16_t count)
{
    struct vb_inflight_region *region = inflight->region;

    for (uint16_t i = 0; i < count; i++) {
        uint16_t head = inflight->done[i & inflight->mask];

        __atomic_store_n(&region->desc[head].next, inflight->last_batch_head, __ATOMIC_RELAXED);
        inflight->last_batch_head = head;
    }
    __atomic_store_n(&region->last_batch_head, inflight->last_batch_head, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* After the used index has become `used_idx`. */
static inline void vb_inflight_strike_out(struct vb_inflight *inflight, uint16_t count,
                                          uint16_t used_idx)
{
    struct vb_inflight_region *region = inflight->region;

    __atomic_thread_fence(__ATOMIC_RELEASE);
    for (uint16_t i = 0; i < count; i++)
        __atomic_store_n(&region->desc[inflight->done[i & inflight->mask]].inflight, 0,
                         __ATOMIC_RELAXED);
    __atomic_store_n(&region->used_idx, used_idx, __ATOMIC_RELEASE);
}

#endif
