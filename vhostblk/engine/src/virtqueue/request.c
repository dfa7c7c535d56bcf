/* SPDX-License-Identifier: Apache-2.0 */
#include "request.h"

#include <string.h>

struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

static void advance(struct iovec *iov, size_t bytes)
{
    iov->iov_base = (char *)iov->iov_base + bytes;
    iov->iov_len -= bytes;
}

/* The framing that nearly all drivers use: a header at the start of the first segment, the status at
 * the end of the last. Leaves the data between them. */
static bool take_ordinary(struct vb_request *request, struct vb_chain *chain,
                          struct header *header)
{
    struct iovec *first = &chain->iovs[0], *last = &chain->iovs[chain->count - 1];

    if (chain->fault || !chain->readable || chain->count == chain->readable ||
        first->iov_len < VB_HEADER_SIZE || !last->iov_len)
        return false;
    memcpy(header, first->iov_base, sizeof(*header));
    /* The copy must not be read a second time behind our back. */
    __asm__ __volatile__("" : "+m"(*header));
    advance(first, VB_HEADER_SIZE);
    last->iov_len--;
    request->status_addr = (uint64_t)(uintptr_t)last->iov_base + last->iov_len;
    return true;
}

/* Any other framing is legal too (2.7.4.1) but rare. False: not a request; a status may still have a
 * place. */
static bool take_other(struct vb_request *request, struct vb_chain *chain, struct header *header)
{
    struct iovec *iovs = chain->iovs, *last = &iovs[chain->count - 1];
    uint32_t have = 0;

    if (chain->count == chain->readable || !last->iov_base)
        return false;
    last->iov_len--;
    request->status_addr = (uint64_t)(uintptr_t)last->iov_base + last->iov_len;
    if (chain->fault)
        return false;
    for (uint32_t i = 0; i < chain->readable && have < sizeof(*header); i++) {
        size_t taken = sizeof(*header) - have;

        if (taken > iovs[i].iov_len)
            taken = iovs[i].iov_len;
        memcpy((char *)header + have, iovs[i].iov_base, taken);
        advance(&iovs[i], taken);
        have += taken;
    }
    __asm__ __volatile__("" : "+m"(*header));
    return have == sizeof(*header);
}

static bool in_range(const struct vb_request *request, uint64_t size, uint32_t logical_block_size)
{
    uint64_t capacity = size / VB_SECTOR_SIZE, sectors = request->length / VB_SECTOR_SIZE;

    if (request->sector > capacity || sectors > capacity - request->sector)
        return false;
    return !((request->length | request->sector * VB_SECTOR_SIZE) & (logical_block_size - 1));
}

static uint64_t bytes_of(const struct vb_chain *chain, uint32_t from, uint32_t end)
{
    uint64_t bytes = 0;

    for (uint32_t i = from; i < end; i++)
        bytes += chain->iovs[i].iov_len;
    return bytes;
}

void vb_request_parse(struct vb_request *request, struct vb_chain *chain, uint16_t head,
                      uint64_t size, uint32_t logical_block_size)
{
    struct header header = {0};
    const struct iovec *first = chain->iovs, *end;
    uint64_t length = 0;

    *request = (struct vb_request){.head = head, .status = VB_STATUS_PENDING};
    if (!chain->count || !(take_ordinary(request, chain, &header) ||
                           take_other(request, chain, &header))) {
        request->status = VB_S_IOERR;
        return;
    }
    request->type = header.type;
    request->sector = header.sector;
    if (vb_into_guest(header.type)) {
        end = first + chain->count;
        first += chain->readable;
    } else if (header.type == VB_T_ZONE_APPEND) {
        /* The data, and behind it the place for the answer; without one nothing. */
        end = first;
        if (bytes_of(chain, chain->readable, chain->count) == VB_APPEND_SECTOR_BYTES)
            end += chain->count;
    } else {
        end = first + chain->readable;
    }
    /* Segments at the ends that held nothing but the header, or the status, drop out. */
    while (first < end && !first->iov_len)
        first++;
    while (end > first && !end[-1].iov_len)
        end--;
    for (const struct iovec *iov = first; iov < end; iov++)
        length += iov->iov_len;
    request->iov_first = (uint32_t)(first - chain->iovs);
    request->iov_count = (uint32_t)(end - first);
    request->length = length;
    if (header.type <= VB_T_OUT && !in_range(request, size, logical_block_size))
        request->status = VB_S_IOERR;
}

uint8_t vb_discard_validate(const struct vb_discard_segment *segments, uint64_t length,
                            uint32_t type, uint64_t size, uint32_t logical_block_size)
{
    uint64_t count = length / sizeof(*segments);
    uint32_t known = type == VB_T_WRITE_ZEROES ? VB_DISCARD_UNMAP : 0;

    if (length % sizeof(*segments) || !count || count > VB_MAX_DISCARD_SEGMENTS)
        return VB_S_IOERR;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t sector = segments[i].sector, sectors = segments[i].sectors;

        if (segments[i].flags & ~known)
            return VB_S_UNSUPP;
        if (sectors > VB_MAX_REQUEST_SECTORS || sector > size / VB_SECTOR_SIZE ||
            sectors > size / VB_SECTOR_SIZE - sector)
            return VB_S_IOERR;
        if (((sector | sectors) * VB_SECTOR_SIZE) & (logical_block_size - 1))
            return VB_S_IOERR;
    }
    return VB_STATUS_PENDING;
}
