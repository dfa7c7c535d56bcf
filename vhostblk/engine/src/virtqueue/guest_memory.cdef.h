/* SPDX-License-Identifier: Apache-2.0 */
/* A guest's memory table, sorted by guest address; regions don't overlap. */
struct vb_region {
    uint64_t guest_addr;
    uint64_t size;
    uint64_t host_addr;
};
