/* SPDX-License-Identifier: Apache-2.0 */
/* A virtqueue of a virtio-blk device, as a port.
 *
 * Each request lives in the slot of its head index from the moment it is taken until its used
 * element is written; the slots are allocated with the queue.
 */
#ifndef VHOSTBLK_QUEUE_H
#define VHOSTBLK_QUEUE_H

#include "core/port.h"
#include "core/upcall.h"

#include "dirty_log.h"
#include "inflight.h"
#include "inflight_packed.h"
#include "request.h"

#include "queue.cdef.h"

/* Segments that a slot holds without allocating. */
#define VB_INLINE_IOVS 4

struct vb_slot {
    struct vb_task task;
    struct vb_request request; /* iov_first is 0 */
    struct iovec inline_iovs[VB_INLINE_IOVS];
    struct vb_discard_segment *segments; /* private copy of the payload, while in progress */
    uint32_t segment, segment_count;
    uint32_t ring_length; /* descriptors of a packed ring */
};

struct vb_queue {
    struct vb_port port;
    struct vb_queue_config config;
    struct vb_ring ring;
    struct vb_memory memory;
    struct vb_region *regions;
    struct vb_chain chain; /* scratch */
    struct vb_slot *slots;
    struct vb_inflight inflight;
    struct vb_inflight_packed packed_inflight;
    struct vb_dirty_log log;
    struct vb_packed_desc *descs; /* scratch: a chain of a packed ring */
    bool left_only;               /* take only requests that an earlier process left */
    bool write_through;
    bool kicks_enabled;
    uint16_t unpublished; /* used elements that the driver has not been shown */
    uint32_t losses;      /* `vb_guard_losses` when the memory was last looked at */
    int call_fd, err_fd;
};

static inline struct vb_queue *vb_queue_of(struct vb_port *port)
{
    return (struct vb_queue *)port;
}

static inline struct vb_slot *vb_slot_of(struct vb_task *task)
{
    return (struct vb_slot *)task;
}

static inline struct vb_queue *vb_slot_queue(const struct vb_slot *slot)
{
    return (struct vb_queue *)slot->task.port;
}

/* The parts of a port, in `queue.c` and `publish.c`. */
bool vb_queue_sweep(struct vb_port *port);
void vb_queue_publish(struct vb_port *port);

/* The number of requests that an earlier process left in flight and that are not taken yet. */
static inline uint32_t vb_queue_left(const struct vb_queue *queue)
{
    return queue->inflight.left_count - queue->inflight.left_taken;
}

/* Start the request in the scratch chain; not `walked`: there was no memory for its segments. */
void vb_slot_begin(struct vb_queue *queue, uint16_t head, bool walked);

/* The end of a task that is a whole request. */
void vb_slot_task_done(struct vb_task *task, int error, uint64_t bytes);

/* Answer a request. `written`: bytes written to its data segments. */
void vb_slot_complete(struct vb_slot *slot, uint8_t status, uint64_t written);

/* Note a write to the used ring, `offset` bytes from its beginning. */
static inline void vb_queue_log_used(struct vb_queue *queue, uint64_t offset, uint64_t length)
{
    if (__builtin_expect(queue->log.used, 0))
        vb_dirty_log_mark(&queue->log, queue->log.used_addr + offset, length);
}

/* Note a write to a packed ring, or to its event suppression, at a host address. */
static inline void vb_queue_log_ring(struct vb_queue *queue, uint64_t host, uint64_t length)
{
    if (__builtin_expect(queue->log.used, 0) && length)
        vb_dirty_log_mark_host(&queue->log, &queue->memory, host, length);
}

#endif
