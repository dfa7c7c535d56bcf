/* SPDX-License-Identifier: Apache-2.0 */
#include "guest_memory.h"

/* The last region that begins at or below `addr`, or count. */
static uint32_t region_below(const struct vb_memory *memory, uint64_t addr)
{
    uint32_t low = 0, high = memory->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (memory->regions[middle].guest_addr <= addr)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? low - 1 : memory->count;
}

uint64_t vb_memory_search(struct vb_memory *memory, uint64_t addr, uint64_t length)
{
    uint32_t index = region_below(memory, addr);
    uint64_t host;

    if (index == memory->count)
        return 0;
    host = vb_region_translate(&memory->regions[index], addr, length);
    if (host)
        memory->hint = index;
    return host;
}

uint64_t vb_memory_piece(const struct vb_memory *memory, uint64_t addr, uint64_t length,
                         uint64_t *host)
{
    uint32_t index = region_below(memory, addr);
    const struct vb_region *region;
    uint64_t offset;

    if (index == memory->count)
        return 0;
    region = &memory->regions[index];
    offset = addr - region->guest_addr;
    if (offset >= region->size)
        return 0;
    *host = region->host_addr + offset;
    return length < region->size - offset ? length : region->size - offset;
}
