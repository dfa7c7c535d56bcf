/* SPDX-License-Identifier: Apache-2.0 */
/* The device side of a virtqueue, split (VIRTIO 1.3, section 2.7) or packed (2.8). Addresses are the
 * host's: of a packed ring, `avail` and `used` are those of the driver's and the device's event
 * suppression. */
struct vb_ring {
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
    uint32_t size; /* a power of two, unless packed */
    uint16_t next_avail;
    uint16_t next_used;
    uint8_t event_idx;
    uint8_t packed; /* the rest is a packed ring's: indices are below the size */
    uint8_t avail_wrap;
    uint8_t used_wrap;
    uint32_t taken;   /* descriptors that the driver has not got back */
    uint32_t unshown; /* descriptors used and not shown to the driver yet, */
    uint16_t first_unshown;
    uint16_t first_flags; /* and the flags that will show them */
};

struct vb_packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
};
