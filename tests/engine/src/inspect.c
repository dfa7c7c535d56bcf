/* SPDX-License-Identifier: Apache-2.0 */
#include "inspect.h"

#include "virtqueue/packed.h"

#include <stdlib.h>
#include <string.h>

/* Append segments; false: there are too many. */
static bool put_segments(const struct iovec *iovs, uint32_t count, int64_t used, uint32_t limit,
                         uint64_t *segments)
{
    if (count > limit - used)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        segments[2 * (used + i)] = (uint64_t)(uintptr_t)iovs[i].iov_base;
        segments[2 * (used + i) + 1] = iovs[i].iov_len;
    }
    return true;
}

int64_t vb_inspect_chains(const struct vb_ring *ring, const struct vb_region *regions,
                          uint32_t region_count, uint32_t n, const uint16_t *heads,
                          struct vb_inspected_chain *chains, uint32_t limit, uint64_t *segments)
{
    struct vb_memory memory = {.regions = regions, .count = region_count};
    struct vb_chain chain = {0};
    int64_t used = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (!vb_chain_walk(&chain, ring, &memory, heads[i]) ||
            !put_segments(chain.iovs, chain.count, used, limit, segments)) {
            used = -1;
            break;
        }
        chains[i] = (struct vb_inspected_chain){used, chain.count, chain.readable, chain.fault};
        used += chain.count;
    }
    vb_chain_free(&chain);
    return used;
}

int64_t vb_inspect_packed(struct vb_ring *ring, const struct vb_region *regions,
                          uint32_t region_count, uint32_t n, uint16_t *ids, uint32_t *lengths,
                          struct vb_inspected_chain *chains, uint32_t limit, uint64_t *segments)
{
    struct vb_memory memory = {.regions = regions, .count = region_count};
    struct vb_packed_desc *descs = calloc(ring->size, sizeof(*descs));
    struct vb_chain chain = {0};
    int64_t taken = descs ? 0 : -2;
    uint32_t used = 0;

    while (taken >= 0 && taken < n && vb_packed_available(ring)) {
        uint32_t count = vb_packed_copy(ring, descs);

        if (!count) {
            taken = taken ? taken : -1;
            break;
        }
        if (!vb_packed_walk(&chain, &memory, descs, count) ||
            !put_segments(chain.iovs, chain.count, used, limit, segments)) {
            taken = -2;
            break;
        }
        ids[taken] = descs[count - 1].id;
        lengths[taken] = count;
        chains[taken++] =
            (struct vb_inspected_chain){used, chain.count, chain.readable, chain.fault};
        used += chain.count;
        vb_packed_advance(ring, count);
    }
    vb_chain_free(&chain);
    free(descs);
    return taken;
}

void vb_inspect_packed_use(struct vb_ring *ring, uint16_t id, uint32_t length, uint16_t count)
{
    vb_packed_put_used(ring, id, length, count);
}

bool vb_inspect_packed_show(struct vb_ring *ring)
{
    return vb_packed_publish(ring);
}

int64_t vb_inspect_requests(const struct vb_ring *ring, const struct vb_region *regions,
                            uint32_t region_count, uint32_t n, const uint16_t *heads,
                            uint64_t size, uint32_t logical_block_size, struct vb_request *records,
                            uint32_t limit, uint64_t *segments)
{
    struct vb_memory memory = {.regions = regions, .count = region_count};
    struct vb_chain chain = {0};
    int64_t used = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct vb_request *request = &records[i];

        if (!vb_chain_walk(&chain, ring, &memory, heads[i])) {
            used = -1;
            break;
        }
        vb_request_parse(request, &chain, heads[i], size, logical_block_size);
        if (!put_segments(chain.iovs + request->iov_first, request->iov_count, used, limit,
                          segments)) {
            used = -1;
            break;
        }
        request->iov_first = used;
        used += request->iov_count;
    }
    vb_chain_free(&chain);
    return used;
}

uint8_t vb_inspect_discard(const void *payload, uint64_t length, uint32_t type, uint64_t size,
                           uint32_t logical_block_size)
{
    struct vb_discard_segment segments[VB_MAX_DISCARD_SEGMENTS];

    if (length > sizeof(segments))
        return VB_S_IOERR;
    memcpy(segments, payload, length);
    return vb_discard_validate(segments, length, type, size, logical_block_size);
}

enum vb_extent_verdict vb_inspect_extent(const struct vb_extent_map *map, uint64_t offset,
                                         uint64_t length, enum vb_extent_access access,
                                         uint64_t *file_offset)
{
    return vb_extent_lookup(map, offset, length, access, file_offset);
}
