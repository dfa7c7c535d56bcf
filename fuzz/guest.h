/* SPDX-License-Identifier: Apache-2.0 */
/* A guest's memory for fuzzers: each region is an allocation of its own, so that AddressSanitizer
 * sees every byte before and behind it.
 */
#ifndef VHOSTBLK_FUZZ_GUEST_H
#define VHOSTBLK_FUZZ_GUEST_H

#include <stdbool.h>

#include "check.h"
#include "input.h"
#include "virtqueue/guest_memory.h"

#define MAX_REGIONS 10
#define MAX_REGION_BYTES 2048

struct guest {
    struct vb_region regions[MAX_REGIONS];
    uint32_t count;
};

/* Regions as a front-end may lay them out: sorted, apart or adjacent, up to the very end of the
 * address space. */
static inline void make_guest(struct guest *guest, struct input *input)
{
    uint8_t shape = take_u8(input);
    uint64_t addr = shape & 16 ? -(uint64_t)take_u16(input) : (uint64_t)(shape >> 5) << 12;

    guest->count = 0;
    for (uint32_t i = 0; i < shape % MAX_REGIONS + 1u; i++) {
        uint64_t size = take_u16(input) % MAX_REGION_BYTES + 1;
        struct vb_region *region = &guest->regions[i];

        if (-addr && -addr < size) /* no more room */
            size = -addr;
        *region = (struct vb_region){addr, size, (uint64_t)(uintptr_t)malloc(size)};
        memset((void *)region->host_addr, 0, size);
        take_bytes(input, (void *)region->host_addr, take_u8(input) * 8u % (size + 1));
        guest->count++;
        addr += size;
        if (!addr)
            break;
        if (take_u8(input) & 1) { /* a hole */
            uint64_t hole = take_u16(input);

            if (addr + hole < addr)
                break;
            addr += hole;
        }
    }
}

static inline void free_guest(struct guest *guest)
{
    for (uint32_t i = 0; i < guest->count; i++)
        free((void *)guest->regions[i].host_addr);
}

/* Whether host memory [host, host + length) is the guest's. */
static inline bool owns(const struct guest *guest, uint64_t host, uint64_t length)
{
    for (uint32_t i = 0; i < guest->count; i++) {
        uint64_t offset = host - guest->regions[i].host_addr;

        if (offset < guest->regions[i].size && length <= guest->regions[i].size - offset)
            return true;
    }
    return false;
}

/* Change some bytes somewhere. */
static inline void scribble(struct guest *guest, struct input *input)
{
    const struct vb_region *region = &guest->regions[take_u8(input) % guest->count];
    uint64_t offset = take_u16(input) % region->size;
    size_t length = take_u8(input) % 64;

    take_bytes(input, (char *)region->host_addr + offset,
               length < region->size - offset ? length : region->size - offset);
}

#endif
