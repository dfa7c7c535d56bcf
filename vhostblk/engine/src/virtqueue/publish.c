/* SPDX-License-Identifier: Apache-2.0 */
/* Showing the driver what has completed, and noting that where it is wanted: in the record of requests
 * in flight, and in a migration's dirty log. */
#include "queue.h"

#include <errno.h>
#include <stdlib.h>

#include "core/iothread.h"

static void log_used_elements(struct vb_queue *queue)
{
    uint32_t size = queue->ring.size, bytes = sizeof(struct vb_used_elem);
    uint32_t count = queue->unpublished < size ? queue->unpublished : size;
    uint32_t first = (uint16_t)(queue->ring.next_used - count) & (size - 1);
    uint32_t before_end = count < size - first ? count : size - first;

    vb_queue_log_used(queue, VB_USED_ELEMENTS + (uint64_t)first * bytes,
                      (uint64_t)before_end * bytes);
    vb_queue_log_used(queue, VB_USED_ELEMENTS, (uint64_t)(count - before_end) * bytes);
}

/* The same with a packed ring, of which `count` descriptors from `first` on were used. They are known
 * by where they are in our memory: the front-end says only where its used ring would be. */
static void log_used_descs(struct vb_queue *queue, uint32_t first, uint32_t count)
{
    const struct vb_ring *ring = &queue->ring;
    uint32_t bytes = sizeof(struct vb_packed_desc);
    uint32_t before_end = count < ring->size - first ? count : ring->size - first;

    vb_queue_log_ring(queue, ring->desc + (uint64_t)first * bytes, (uint64_t)before_end * bytes);
    vb_queue_log_ring(queue, ring->desc, (uint64_t)(count - before_end) * bytes);
}

static bool publish_split(struct vb_queue *queue)
{
    bool wanted;

    if (queue->inflight.region)
        vb_inflight_link(&queue->inflight, queue->unpublished);
    if (__builtin_expect(queue->log.used, 0))
        log_used_elements(queue);
    wanted = vb_ring_publish(&queue->ring, queue->unpublished);
    vb_queue_log_used(queue, VB_USED_INDEX, sizeof(uint16_t));
    if (queue->inflight.region)
        vb_inflight_strike_out(&queue->inflight, queue->unpublished, queue->ring.next_used);
    return wanted;
}

static bool publish_packed(struct vb_queue *queue)
{
    struct vb_inflight_packed *inflight = &queue->packed_inflight;
    uint32_t first = queue->ring.first_unshown, count = queue->ring.unshown;
    bool wanted;

    if (inflight->region)
        vb_inflight_packed_link(inflight, &queue->ring, queue->inflight.done, queue->unpublished);
    wanted = vb_packed_publish(&queue->ring);
    if (__builtin_expect(queue->log.used, 0))
        log_used_descs(queue, first, count);
    if (inflight->region)
        vb_inflight_packed_strike_out(inflight, &queue->ring, queue->inflight.done,
                                      queue->unpublished);
    return wanted;
}

void vb_queue_publish(struct vb_port *port)
{
    struct vb_queue *queue = vb_queue_of(port);
    bool wanted;

    if (!queue->unpublished)
        return;
    vb_stats_take(&port->stats, &port->counts, port->iothread->now);
    wanted = queue->ring.packed ? publish_packed(queue) : publish_split(queue);
    if (__builtin_expect(queue->log.data | queue->log.used, 0) && queue->log.event_fd >= 0)
        vb_iothread_notify(port->iothread, queue->log.event_fd);
    if (wanted && queue->call_fd >= 0) {
        port->stats.notified++;
        vb_iothread_notify(port->iothread, queue->call_fd);
    }
    queue->unpublished = 0;
}

static void set_log(struct vb_command *command)
{
    struct vb_queue *queue = vb_queue_of(command->port);

    queue->log = *(struct vb_dirty_log *)command->pointer;
    free(command->pointer);
}

/* Note all of the used ring: parts may have been written before this was wanted. */
static void log_whole_ring(const struct vb_queue *queue, const struct vb_dirty_log *log)
{
    const struct vb_ring *ring = &queue->ring;

    if (!log->used)
        return;
    if (ring->packed) {
        vb_dirty_log_mark_host(log, &queue->memory, ring->desc,
                               (uint64_t)ring->size * sizeof(struct vb_packed_desc));
        vb_dirty_log_mark_host(log, &queue->memory, ring->used, sizeof(struct vb_packed_event));
    } else {
        vb_dirty_log_mark(log, log->used_addr,
                          VB_USED_ELEMENTS + (uint64_t)ring->size * sizeof(struct vb_used_elem) +
                              sizeof(uint16_t));
    }
}

int vb_queue_set_log(struct vb_queue *queue, const struct vb_dirty_log *log)
{
    struct vb_dirty_log *copy = malloc(sizeof(*copy));

    if (!copy)
        return -ENOMEM;
    *copy = log ? *log : (struct vb_dirty_log){.event_fd = -1};
    /* Here, for by the time that the command runs the log may be another one. */
    log_whole_ring(queue, copy);
    vb_port_tell(&queue->port, queue->port.iothread, set_log, 0, copy);
    return 0;
}
