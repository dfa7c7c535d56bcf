/* SPDX-License-Identifier: Apache-2.0 */
/* Virtqueues of virtio-blk devices: ports of an iothread. What is the same for all ports is in
 * `port.cdef.h`. */

struct vb_queue;

struct vb_queue_config {
    struct vb_ring ring;
    uint64_t device_size; /* bytes */
    uint32_t logical_block_size;
    uint32_t index;
    int32_t kick_fd; /* -1: the ring is polled */
    uint8_t writable;
    uint8_t write_through;
    char serial[20];
};

/* A new queue, held once and not open. The regions are copied; the memory stays mapped until the queue
 * is closed or has moved. Descriptors are duplicated, here and below. NULL: out of memory, or of
 * descriptors. */
struct vb_queue *vb_queue_new(struct vb_iothread *iothread, const struct vb_queue_config *config,
                              const struct vb_region *regions, uint32_t count);

/* It as a port. */
struct vb_port *vb_queue_port(struct vb_queue *queue);

/* Note requests in flight in a record (`struct vb_inflight_region`) that lives longer than the queue;
 * `counter` is the number of the next one. The heads in `left` are taken before any new ones. Not
 * open yet. -ENOMEM: nothing has changed. */
int vb_queue_track(struct vb_queue *queue, uint64_t record, uint64_t counter, uint32_t left_count,
                   const uint16_t *left);

/* The same for a packed queue (`struct vb_inflight_packed_region`). `links` are those of the record's
 * `entries`, `free_head` is the first free one. Chains left in flight begin at entry `first`. Their
 * ring descriptors are `descs`, one chain after the other. */
struct vb_packed_left {
    uint16_t id;
    uint16_t first;
    uint16_t last;
    uint16_t count;
};

int vb_queue_track_packed(struct vb_queue *queue, uint64_t record, uint64_t counter,
                          uint32_t entries, const uint16_t *links, uint16_t free_head,
                          uint32_t left_count, const struct vb_packed_left *left,
                          const struct vb_packed_desc *descs);

/* Take only requests that an earlier process left in flight, from now on. */
void vb_queue_limit_to_left(struct vb_queue *queue);

/* How many of them have not been taken yet; then reaching 0 is news. A broken ring has none. */
uint32_t vb_queue_left_count(struct vb_queue *queue);

/* What SET_VRING_BASE says of its ring; held and idle. */
uint32_t vb_queue_base(struct vb_queue *queue);

/* -1: none. Setting the call fd signals it: the change may have swallowed a notification. -errno: there
 * is no descriptor left, and nothing has changed. */
int vb_queue_set_call(struct vb_queue *queue, int fd);
int vb_queue_set_err(struct vb_queue *queue, int fd);
void vb_queue_set_write_through(struct vb_queue *queue, int enabled);
void vb_queue_set_device_size(struct vb_queue *queue, uint64_t size);

/* Go on in another memory table; held and idle. -ENOMEM: nothing has changed. */
int vb_queue_move(struct vb_queue *queue, const struct vb_ring *ring,
                  const struct vb_region *regions, uint32_t count);

/* Note writes to guest memory (NULL: not); held and idle, or not open yet. With a used ring to note, all
 * of it is noted at once. -ENOMEM: nothing has changed. */
int vb_queue_set_log(struct vb_queue *queue, const struct vb_dirty_log *log);

/* Describe upcalls as virtio-blk requests. */
void vb_queue_describe(const struct vb_queue *queue, uint32_t n, const struct vb_upcall *upcalls,
                       struct vb_request *requests);
