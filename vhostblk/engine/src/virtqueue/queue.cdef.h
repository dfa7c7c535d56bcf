/* SPDX-License-Identifier: Apache-2.0 */
/* Queues on an iothread, as Python sees them. Every call takes the iothread's lock for the time that
 * one sweep takes at most, and may be made from any thread. */

struct vb_queue;

struct vb_queue_config {
    struct vb_ring ring;
    uint64_t device_size; /* bytes */
    uint32_t logical_block_size;
    uint32_t index;
    int32_t kick_fd; /* stays the caller's; -1: the ring is polled */
    uint8_t writable;
    uint8_t write_through;
    char serial[20];
};

/* A new queue, held once. The regions are copied; the memory stays mapped until the queue is freed
 * or has moved. NULL: out of memory. */
struct vb_queue *vb_queue_new(struct vb_iothread *iothread, const struct vb_queue_config *config,
                              const struct vb_region *regions, uint32_t count);

/* Note requests in flight in a record (`struct vb_inflight_region`) that lives longer than the queue;
 * `counter` is the number of the next one. The heads in `left` are taken before any new ones. Before
 * the first release. -ENOMEM: nothing has changed. */
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

/* Take only requests that an earlier process left in flight, from now on. Returns how many of them
 * have not been taken yet; reaching 0 signals the upcall fd. A broken ring has none. */
uint32_t vb_queue_limit_to_left(struct vb_queue *queue);

/* Free a queue that is held and idle; returns what SET_VRING_BASE says of its ring. */
uint32_t vb_queue_free(struct vb_queue *queue);

/* Take no more requests, or go on. Holds add up. */
void vb_queue_hold(struct vb_queue *queue);
void vb_queue_release(struct vb_queue *queue);

/* Requests taken and not completed. While the queue is held, reaching 0 signals the upcall fd, and
 * the engine has let go of the map's file by then. */
uint32_t vb_queue_in_flight(struct vb_queue *queue);

/* Why the ring is broken, or NULL. */
const char *vb_queue_broken(struct vb_queue *queue);

/* The errno with which file I/O last failed since this was last called; 0: it has not. `write` asks
 * of all that is not a read. Failures signal the upcall fd. Takes no lock. */
int vb_queue_take_error(struct vb_queue *queue, int write);

/* -1: none. Setting the call fd signals it: the change may have swallowed a notification. */
void vb_queue_set_call(struct vb_queue *queue, int fd);
void vb_queue_set_err(struct vb_queue *queue, int fd);
void vb_queue_set_write_through(struct vb_queue *queue, int enabled);
void vb_queue_set_device_size(struct vb_queue *queue, uint64_t size);

/* Go on in another memory table; held and idle. -ENOMEM: nothing has changed. */
int vb_queue_move(struct vb_queue *queue, const struct vb_ring *ring,
                  const struct vb_region *regions, uint32_t count);

/* Note writes to guest memory (NULL: not); held and idle. With a used ring to note, all of it is noted
 * at once. */
void vb_queue_set_log(struct vb_queue *queue, const struct vb_dirty_log *log);

/* Use a map from now on (NULL: everything goes up). Requests that used the former one may still be
 * in flight: `vb_queue_mapped_in_flight` tells how many (a file that the engine still has counts,
 * too). While the queue is held, reaching 0 signals the upcall fd. */
void vb_queue_set_map(struct vb_queue *queue, struct vb_extent_map *map);
uint32_t vb_queue_mapped_in_flight(struct vb_queue *queue);

/* Begin to wait for requests that went by the map's table before now; those that begin later have
 * seen what was changed in it. Returns how many there are. When `vb_queue_unsettled` gets to 0 the
 * upcall fd is signalled. Not again before that. */
uint32_t vb_queue_settle(struct vb_queue *queue);
uint32_t vb_queue_unsettled(struct vb_queue *queue);

const struct vb_stats *vb_queue_stats(struct vb_queue *queue);

/* Complete requests that went up: `n` heads with the status and the bytes written to each one's
 * data segments; with neither they are reads and writes that did all they should. Heads that are
 * not up are ignored. */
void vb_queue_complete(struct vb_queue *queue, uint32_t n, const uint16_t *heads,
                       const uint8_t *statuses, const uint32_t *written);
