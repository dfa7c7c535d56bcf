/* SPDX-License-Identifier: Apache-2.0 */
#include "packed.h"

#include <string.h>

enum { EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC };

uint32_t vb_packed_copy(const struct vb_ring *ring, struct vb_packed_desc *into)
{
    const struct vb_packed_desc *descs = vb_packed_ring(ring);
    uint32_t room = ring->size - ring->taken, at = ring->next_avail, count = 0;

    while (count < room) {
        struct vb_packed_desc *copy = &into[count++];

        memcpy(copy, &descs[at], sizeof(*copy));
        /* The copy must not be read a second time behind our back. */
        __asm__ __volatile__("" : "+m"(*copy));
        if (!(copy->flags & VB_DESC_F_NEXT))
            return count;
        if (++at == ring->size)
            at = 0;
    }
    return 0;
}

/* Places on a circle of two laps, so that they say which lap they mean. */
static uint32_t on_circle(const struct vb_ring *ring, uint32_t index, bool wrap)
{
    return wrap ? index : index + ring->size;
}

bool vb_packed_publish(struct vb_ring *ring)
{
    struct vb_packed_event *driver = (struct vb_packed_event *)(uintptr_t)ring->avail;
    uint32_t shown = ring->unshown;
    uint16_t flags;

    __atomic_store_n(&vb_packed_ring(ring)[ring->first_unshown].flags, ring->first_flags,
                     __ATOMIC_RELEASE);
    ring->unshown = 0;
    ring->taken -= shown;
    /* The driver stores what it wants and then looks at the ring; we the other way round. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    flags = __atomic_load_n(&driver->flags, __ATOMIC_ACQUIRE);
    if (flags == EVENT_DESC && ring->event_idx) {
        uint16_t wanted = __atomic_load_n(&driver->place, __ATOMIC_RELAXED);
        uint32_t event =
            on_circle(ring, wanted & (VB_PACKED_WRAP - 1), wanted & VB_PACKED_WRAP);
        uint32_t used = on_circle(ring, ring->next_used, ring->used_wrap);
        uint32_t circle = 2 * ring->size;

        return (used + circle - event % circle + circle - 1) % circle < shown;
    }
    return flags != EVENT_DISABLE;
}

static uint16_t encode(uint16_t index, bool wrap)
{
    return index | (wrap ? VB_PACKED_WRAP : 0);
}

void vb_packed_enable_kicks(struct vb_ring *ring)
{
    struct vb_packed_event *device = (struct vb_packed_event *)(uintptr_t)ring->used;

    if (ring->event_idx) {
        __atomic_store_n(&device->place, encode(ring->next_avail, ring->avail_wrap),
                         __ATOMIC_RELAXED);
        __atomic_store_n(&device->flags, EVENT_DESC, __ATOMIC_RELEASE);
    } else {
        __atomic_store_n(&device->flags, EVENT_ENABLE, __ATOMIC_RELAXED);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void vb_packed_disable_kicks(struct vb_ring *ring)
{
    struct vb_packed_event *device = (struct vb_packed_event *)(uintptr_t)ring->used;

    __atomic_store_n(&device->flags, EVENT_DISABLE, __ATOMIC_RELAXED);
}

uint32_t vb_packed_base(const struct vb_ring *ring)
{
    return encode(ring->next_avail, ring->avail_wrap) |
           (uint32_t)encode(ring->next_used, ring->used_wrap) << 16;
}
