/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver's side of split rings (VIRTIO 1.3, section 2.7): layout, and the four places where
 * the order of memory accesses matters.
 *
 *  - avail->idx is stored with release, so that the device sees the entries that it covers;
 *  - used->idx is loaded with acquire, so that we see the entries that it covers;
 *  - between that store and the load of avail_event (or used->flags) stands a full fence: the
 *    device does the mirror image, and without both a kick would get lost;
 *  - the same again between the store of used_event and the last look at used->idx before
 *    sleeping.
 */
#ifndef RING_H
#define RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");

#define DESC_F_NEXT 1
#define DESC_F_WRITE 2
#define DESC_F_INDIRECT 4
#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY 1

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct avail {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    uint16_t ring[]; /* and, after the last, used_event */
};

struct used_elem {
    uint32_t id;
    uint32_t len;
};

struct used {
    _Atomic uint16_t flags;
    _Atomic uint16_t idx;
    struct used_elem ring[]; /* and, after the last, avail_event */
};

static inline _Atomic uint16_t *used_event(struct avail *avail, uint16_t size)
{
    return (_Atomic uint16_t *)&avail->ring[size];
}

static inline _Atomic uint16_t *avail_event(struct used *used, uint16_t size)
{
    return (_Atomic uint16_t *)&used->ring[size];
}

/* Did the index pass `event` on its way from `before` to `now`? (2.7.7.1) */
static inline bool passed_event(uint16_t event, uint16_t now, uint16_t before)
{
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
