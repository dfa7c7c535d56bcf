/* SPDX-License-Identifier: Apache-2.0 */
/* One virtio-blk request; `vhostblk.virtio_blk.request.REQUEST` is the same to Python. */
struct vb_request {
    uint64_t sector;
    uint64_t length;      /* bytes of data */
    uint64_t status_addr; /* host address, or 0 */
    uint32_t type;
    uint32_t iov_first;
    uint32_t iov_count;
    uint16_t head;
    uint8_t status; /* VB_STATUS_PENDING: to be served */
    uint8_t reserved;
};
