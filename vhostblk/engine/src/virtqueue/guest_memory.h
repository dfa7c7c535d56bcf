/* SPDX-License-Identifier: Apache-2.0 */
/* Translation of guest addresses. */
#ifndef VHOSTBLK_GUEST_MEMORY_H
#define VHOSTBLK_GUEST_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "guest_memory.cdef.h"

struct vb_memory {
    const struct vb_region *regions;
    uint32_t count;
    uint32_t hint; /* the region of the last hit */
};

/* Host address of a range that lies inside one region, else 0. No sum is formed that can overflow:
 * an address below its region wraps to a huge offset, which the size refuses. */
static inline uint64_t vb_region_translate(const struct vb_region *region, uint64_t addr,
                                           uint64_t length)
{
    uint64_t offset = addr - region->guest_addr;

    if (offset < region->size && length <= region->size - offset)
        return region->host_addr + offset;
    return 0;
}

uint64_t vb_memory_search(struct vb_memory *memory, uint64_t addr, uint64_t length);

static inline uint64_t vb_memory_translate(struct vb_memory *memory, uint64_t addr, uint64_t length)
{
    if (memory->count) {
        uint64_t host = vb_region_translate(&memory->regions[memory->hint], addr, length);

        if (host)
            return host;
    }
    return vb_memory_search(memory, addr, length);
}

/* The mapped part of a range from its start on: *host and the bytes up to the end of its region, at
 * most `length`; 0 where the start is not mapped. For buffers that go on in an adjacent region. */
uint64_t vb_memory_piece(const struct vb_memory *memory, uint64_t addr, uint64_t length,
                         uint64_t *host);

#endif
