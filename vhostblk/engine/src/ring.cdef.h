/* SPDX-License-Identifier: Apache-2.0 */
/* The device side of a split virtqueue (VIRTIO 1.3, section 2.7). Addresses are the host's. */
struct vb_ring {
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
    uint32_t size; /* a power of two */
    uint16_t next_avail;
    uint16_t next_used;
    uint8_t event_idx;
};
