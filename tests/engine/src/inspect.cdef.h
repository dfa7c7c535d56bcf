/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's decisions one by one, without a queue. Tests compare them with those of the Python
 * lane. */

/* What a walk of one chain found; its segments are those from `first` on. */
struct vb_inspected_chain {
    uint32_t first;
    uint32_t count;
    uint32_t readable;
    uint32_t fault;
};

/* Walk the chains at `heads`, each below ring->size. Segments are pairs of address and length.
 * Returns how many there are; -1: more than `limit`, or out of memory. */
int64_t vb_inspect_chains(const struct vb_ring *ring, const struct vb_region *regions,
                          uint32_t region_count, uint32_t n, const uint16_t *heads,
                          struct vb_inspected_chain *chains, uint32_t limit, uint64_t *segments);

/* Take up to `n` chains from a packed ring, which goes on, and walk them. `ids` and `lengths`, in ring
 * descriptors, are theirs. Returns how many there are; -1: none, and the ring is broken; -2: more
 * segments than `limit`, or out of memory. */
int64_t vb_inspect_packed(struct vb_ring *ring, const struct vb_region *regions,
                          uint32_t region_count, uint32_t n, uint16_t *ids, uint32_t *lengths,
                          struct vb_inspected_chain *chains, uint32_t limit, uint64_t *segments);

/* Put a chain of `count` ring descriptors among the used ones of a packed ring, `length` bytes of
 * which were written; the driver does not see it before `vb_inspect_packed_show`. */
void vb_inspect_packed_use(struct vb_ring *ring, uint16_t id, uint32_t length, uint16_t count);

/* Show them to the driver; tell whether it wants to be notified. */
bool vb_inspect_packed_show(struct vb_ring *ring);

/* As `vb_inspect_chains`, and parse them on a device of `size` bytes; the segments are those of the
 * data. */
int64_t vb_inspect_requests(const struct vb_ring *ring, const struct vb_region *regions,
                            uint32_t region_count, uint32_t n, const uint16_t *heads,
                            uint64_t size, uint32_t logical_block_size, struct vb_request *records,
                            uint32_t limit, uint64_t *segments);

/* The status to answer, or 255. */
uint8_t vb_inspect_discard(const void *payload, uint64_t length, uint32_t type, uint64_t size,
                           uint32_t logical_block_size);

enum vb_extent_verdict vb_inspect_extent(const struct vb_extent_map *map, uint64_t offset,
                                         uint64_t length, enum vb_extent_access access,
                                         uint64_t *file_offset);
