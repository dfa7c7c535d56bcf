/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver's side of packed rings (VIRTIO 1.3, section 2.8). `avail` and `used` are where the
 * driver's and the device's event suppression are. Order of memory accesses:
 *
 *  - a chain's first flags are stored after all else of it, those of a burst's first chain last of
 *    all and with release, so that the device sees the burst at once;
 *  - a used descriptor's flags are loaded with acquire, so that we see its other fields;
 *  - full fences stand where they do for split rings.
 */
#ifndef PACKED_H
#define PACKED_H

#include "loadgen.h"
#include "ring.h"

#define PACKED_AVAIL (1 << 7)
#define PACKED_USED (1 << 15)
#define PACKED_WRAP (1 << 15)

enum { EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC };

struct packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    _Atomic uint16_t flags;
};

struct packed_event {
    _Atomic uint16_t place;
    _Atomic uint16_t flags;
};

static inline struct packed_desc *packed_ring(const struct lg_queue *queue)
{
    return (struct packed_desc *)(queue->memory + queue->desc);
}

static inline struct packed_event *packed_event_at(const struct lg_queue *queue, uint64_t offset)
{
    return (struct packed_event *)(queue->memory + offset);
}

static inline uint16_t packed_place(uint16_t index, bool wrap)
{
    return index | (wrap ? PACKED_WRAP : 0);
}

/* Put a chain of `count` table entries in the ring, unseen until `packed_publish`. */
static inline void packed_add(struct lg_queue *queue, const struct packed_desc *entries,
                              uint16_t count, uint16_t id)
{
    struct packed_desc *ring = packed_ring(queue);
    uint16_t first = queue->avail_index, first_flags = 0;

    for (uint16_t i = 0; i < count; i++) {
        struct packed_desc *desc = &ring[queue->avail_index];
        uint16_t flags = atomic_load_explicit(&entries[i].flags, memory_order_relaxed);

        flags |= queue->avail_wrap ? PACKED_AVAIL : PACKED_USED;
        flags |= i + 1 < count ? DESC_F_NEXT : 0;
        desc->addr = entries[i].addr;
        desc->len = entries[i].len;
        desc->id = id;
        if (i)
            atomic_store_explicit(&desc->flags, flags, memory_order_relaxed);
        else
            first_flags = flags;
        if (++queue->avail_index == queue->size) {
            queue->avail_index = 0;
            queue->avail_wrap = !queue->avail_wrap;
        }
    }
    if (queue->unseen) {
        atomic_store_explicit(&ring[first].flags, first_flags, memory_order_release);
    } else {
        queue->first_unseen = first;
        queue->first_flags = first_flags;
    }
    queue->unseen += count;
}

/* Show the device the new chains; does it want a kick? */
static inline bool packed_publish(struct lg_queue *queue)
{
    struct packed_event *device = packed_event_at(queue, queue->used);
    uint16_t flags;
    uint32_t count = queue->unseen;

    atomic_store_explicit(&packed_ring(queue)[queue->first_unseen].flags, queue->first_flags,
                          memory_order_release);
    queue->unseen = 0;
    atomic_thread_fence(memory_order_seq_cst);
    flags = atomic_load_explicit(&device->flags, memory_order_acquire);
    if (flags == EVENT_DESC && queue->event_idx) {
        uint16_t place = atomic_load_explicit(&device->place, memory_order_relaxed);
        uint32_t circle = 2u * queue->size;
        uint32_t event = (place & (PACKED_WRAP - 1)) + (place & PACKED_WRAP ? 0 : queue->size);
        uint32_t now = queue->avail_index + (queue->avail_wrap ? 0 : queue->size);

        return (now + circle - event % circle + circle - 1) % circle < count;
    }
    return flags != EVENT_DISABLE;
}

static inline bool packed_has_used(const struct lg_queue *queue)
{
    uint16_t flags = atomic_load_explicit(&packed_ring(queue)[queue->used_index].flags,
                                          memory_order_acquire);
    uint16_t mine = flags & (PACKED_AVAIL | PACKED_USED);

    return mine == (queue->used_wrap ? PACKED_AVAIL | PACKED_USED : 0);
}

/* A used descriptor has been taken that stood for `count`. */
static inline void packed_skip_used(struct lg_queue *queue, uint16_t count)
{
    uint32_t next = queue->used_index + count;

    if (next >= queue->size) {
        next -= queue->size;
        queue->used_wrap = !queue->used_wrap;
    }
    queue->used_index = (uint16_t)next;
}

static inline void packed_suppress_interrupts(struct lg_queue *queue)
{
    atomic_store_explicit(&packed_event_at(queue, queue->avail)->flags, EVENT_DISABLE,
                          memory_order_relaxed);
}

static inline void packed_arm_interrupt(struct lg_queue *queue)
{
    struct packed_event *driver = packed_event_at(queue, queue->avail);

    if (queue->event_idx) {
        atomic_store_explicit(&driver->place, packed_place(queue->used_index, queue->used_wrap),
                              memory_order_relaxed);
        atomic_store_explicit(&driver->flags, EVENT_DESC, memory_order_release);
    } else {
        atomic_store_explicit(&driver->flags, EVENT_ENABLE, memory_order_relaxed);
    }
    atomic_thread_fence(memory_order_seq_cst);
}

#endif
