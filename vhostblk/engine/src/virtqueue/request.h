/* SPDX-License-Identifier: Apache-2.0 */
/* From a descriptor chain to a virtio-blk request (VIRTIO 1.3, section 5.2.6).
 *
 * The one place in C that validates requests; `vhostblk.virtio_blk.request` is its twin.
 */
#ifndef VHOSTBLK_REQUEST_H
#define VHOSTBLK_REQUEST_H

#include "ring.h"

#include "request.cdef.h"

enum {
    VB_SECTOR_SIZE = 512,
    VB_HEADER_SIZE = 16,
    VB_ID_BYTES = 20,
    VB_APPEND_SECTOR_BYTES = 8, /* what ZONE_APPEND answers before the status */
};

enum vb_request_type {
    VB_T_IN = 0,
    VB_T_OUT = 1,
    VB_T_FLUSH = 4,
    VB_T_GET_ID = 8,
    VB_T_GET_LIFETIME = 10,
    VB_T_DISCARD = 11,
    VB_T_WRITE_ZEROES = 13,
    VB_T_SECURE_ERASE = 14,
    VB_T_ZONE_APPEND = 15,
    VB_T_ZONE_REPORT = 16,
    VB_T_ZONE_OPEN = 18,
    VB_T_ZONE_CLOSE = 20,
    VB_T_ZONE_FINISH = 22,
    VB_T_ZONE_RESET = 24,
    VB_T_ZONE_RESET_ALL = 26,
};

/* Whether the data of a request of this type goes to the guest. */
static inline bool vb_into_guest(uint32_t type)
{
    return type == VB_T_IN || type == VB_T_GET_ID || type == VB_T_GET_LIFETIME ||
           type == VB_T_ZONE_REPORT;
}

enum vb_status {
    VB_S_OK = 0,
    VB_S_IOERR = 1,
    VB_S_UNSUPP = 2,
    VB_STATUS_PENDING = 0xFF,
};

/* A segment of DISCARD and WRITE_ZEROES. */
struct vb_discard_segment {
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;
};

#define VB_DISCARD_UNMAP 1
#define VB_MAX_DISCARD_SEGMENTS 32
#define VB_MAX_REQUEST_SECTORS ((1u << 31) / VB_SECTOR_SIZE - 1)

/* Parse on a device of `size` bytes; changes the chain's segments, of which the request takes
 * `iov_first` to `iov_first + iov_count`. */
void vb_request_parse(struct vb_request *request, struct vb_chain *chain, uint16_t head,
                      uint64_t size, uint32_t logical_block_size);

/* Validate the payload of a DISCARD or WRITE_ZEROES request, `length` bytes of which are in
 * `segments`; returns the status to answer, VB_STATUS_PENDING where all is well. */
uint8_t vb_discard_validate(const struct vb_discard_segment *segments, uint64_t length,
                            uint32_t type, uint64_t size, uint32_t logical_block_size);

#endif
