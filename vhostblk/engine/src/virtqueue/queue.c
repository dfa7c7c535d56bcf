/* SPDX-License-Identifier: Apache-2.0 */
/* Taking requests from a ring; and the life of a queue. */
#define _GNU_SOURCE
#include "queue.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/guard.h"
#include "core/iothread.h"
#include "core/notify.h"

static void break_ring(struct vb_queue *queue, const char *reason)
{
    vb_port_break(&queue->port, reason);
    if (queue->err_fd >= 0)
        vb_iothread_notify(queue->port.iothread, queue->err_fd);
}

static void take(struct vb_queue *queue, uint16_t head)
{
    vb_slot_begin(queue, head, vb_chain_walk(&queue->chain, &queue->ring, &queue->memory, head));
}

static void take_packed(struct vb_queue *queue, uint16_t id, const struct vb_packed_desc *descs,
                        uint32_t count)
{
    queue->slots[id].ring_length = count;
    vb_slot_begin(queue, id, vb_packed_walk(&queue->chain, &queue->memory, descs, count));
}

static void take_left(struct vb_queue *queue)
{
    struct vb_inflight *inflight = &queue->inflight;

    while (vb_queue_left(queue) && vb_port_takes_one(&queue->port)) {
        uint16_t place = inflight->left_taken++;

        if (queue->ring.packed) {
            const struct vb_packed_left *left = &inflight->packed_left[place];

            take_packed(queue, left->id, inflight->left_descs, left->count);
            inflight->left_descs += left->count;
        } else {
            take(queue, inflight->left[place]);
        }
    }
    vb_run_finish(&queue->port);
    if (queue->left_only && !vb_queue_left(queue))
        vb_port_news(&queue->port);
}

/* Whether a part of guest memory, or of the record, is no longer there. */
static bool memory_lost(struct vb_queue *queue)
{
    uint32_t losses = __atomic_load_n(&vb_guard_losses, __ATOMIC_ACQUIRE);

    if (losses == queue->losses)
        return false;
    queue->losses = losses;
    for (uint32_t i = 0; i < queue->memory.count; i++)
        if (vb_guard_address_lost(queue->memory.regions[i].host_addr))
            return true;
    return vb_guard_address_lost((uint64_t)(uintptr_t)queue->inflight.region) ||
           vb_guard_address_lost((uint64_t)(uintptr_t)queue->packed_inflight.region) ||
           vb_guard_address_lost(queue->log.bits);
}

/* Take the chain that is available. False: the ring is broken. */
static bool take_next_packed(struct vb_queue *queue)
{
    struct vb_ring *ring = &queue->ring;
    uint32_t count = vb_packed_copy(ring, queue->descs);
    uint16_t id;

    if (!count) {
        break_ring(queue, "a chain has no end");
        return false;
    }
    id = queue->descs[count - 1].id;
    if (id >= ring->size) {
        break_ring(queue, "a buffer id is out of range");
        return false;
    }
    /* An id that is used but not shown yet is the record's still. */
    if (queue->slots[id].task.state != VB_TASK_FREE ||
        (queue->packed_inflight.region && queue->packed_inflight.first[id] != VB_NO_ENTRY)) {
        break_ring(queue, "a buffer id was made available while in flight");
        return false;
    }
    vb_packed_advance(ring, count);
    if (queue->packed_inflight.region)
        vb_inflight_packed_take(&queue->packed_inflight, id, queue->descs, count);
    take_packed(queue, id, queue->descs, count);
    return true;
}

static bool sweep_packed(struct vb_queue *queue)
{
    struct vb_ring *ring = &queue->ring;

    if (!vb_packed_available(ring))
        return false;
    if (memory_lost(queue)) {
        break_ring(queue, "guest memory was truncated");
        return false;
    }
    queue->port.stats.sweeps++;
    if (queue->kicks_enabled) {
        vb_packed_disable_kicks(ring);
        vb_queue_log_ring(queue, ring->used, sizeof(struct vb_packed_event));
        queue->kicks_enabled = false;
    }
    /* What completes meanwhile is not shown yet, so there is an end after one lap. */
    while (vb_packed_available(ring) && vb_port_takes_one(&queue->port) &&
           take_next_packed(queue))
        ;
    vb_run_finish(&queue->port);
    return true;
}

bool vb_queue_sweep(struct vb_port *port)
{
    struct vb_queue *queue = vb_queue_of(port);
    struct vb_ring *ring = &queue->ring;
    uint16_t available;

    if (vb_queue_left(queue)) {
        take_left(queue);
        return true;
    }
    if (queue->left_only)
        return false;
    if (ring->packed)
        return sweep_packed(queue);
    available = vb_ring_available(ring);
    if (!available)
        return false;
    if (memory_lost(queue)) {
        break_ring(queue, "guest memory was truncated");
        return false;
    }
    if (available > ring->size) {
        break_ring(queue, "the avail index jumped by more than the queue's size");
        return false;
    }
    queue->port.stats.sweeps++;
    if (queue->kicks_enabled) {
        vb_ring_disable_kicks(ring);
        vb_queue_log_used(queue, 0, sizeof(uint16_t));
        queue->kicks_enabled = false;
    }
    while (available-- && vb_port_takes_one(port)) {
        uint16_t head = vb_ring_head(ring, ring->next_avail);

        if (head >= ring->size) {
            break_ring(queue, "a head is out of range");
            break;
        }
        if (queue->slots[head].task.state != VB_TASK_FREE) {
            break_ring(queue, "a head was made available while in flight");
            break;
        }
        ring->next_avail++;
        if (queue->inflight.region)
            vb_inflight_take(&queue->inflight, head);
        take(queue, head);
    }
    vb_run_finish(&queue->port);
    return true;
}

/* With EVENT_IDX it is behind the ring's elements, else in the flags. */
static void log_kick_request(struct vb_queue *queue)
{
    uint64_t end = VB_USED_ELEMENTS + (uint64_t)queue->ring.size * sizeof(struct vb_used_elem);

    vb_queue_log_used(queue, queue->ring.event_idx ? end : 0, sizeof(uint16_t));
}

static bool arm(struct vb_port *port)
{
    struct vb_queue *queue = vb_queue_of(port);

    if (queue->left_only)
        return vb_queue_left(queue);
    queue->kicks_enabled = true;
    if (queue->ring.packed) {
        vb_packed_enable_kicks(&queue->ring);
        vb_queue_log_ring(queue, queue->ring.used, sizeof(struct vb_packed_event));
        return vb_queue_left(queue) || vb_packed_available(&queue->ring);
    }
    vb_ring_enable_kicks(&queue->ring);
    log_kick_request(queue);
    return vb_queue_left(queue) || vb_ring_available(&queue->ring);
}

/* Calls from Python. */

static struct vb_region *copy_regions(const struct vb_region *regions, uint32_t count)
{
    struct vb_region *copy = malloc((count ? count : 1) * sizeof(*copy));

    if (copy)
        memcpy(copy, regions, count * sizeof(*copy));
    return copy;
}

static void woken(struct vb_port *port)
{
    vb_notify_clear(port->wake_fd);
    port->stats.kicks++;
}

static struct vb_task *find(struct vb_port *port, uint16_t tag)
{
    struct vb_queue *queue = vb_queue_of(port);

    return tag < queue->ring.size ? &queue->slots[tag].task : NULL;
}

static void complete(struct vb_port *port, struct vb_task *task, uint8_t status, uint32_t bytes)
{
    vb_slot_complete(vb_slot_of(task), status, bytes);
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void destroy(struct vb_port *port)
{
    struct vb_queue *queue = vb_queue_of(port);

    vb_chain_free(&queue->chain);
    free(queue->inflight.done);
    free(queue->packed_inflight.links);
    free((void *)queue->inflight.packed_left);
    free(queue->descs);
    free(queue->regions);
    free(queue->slots);
    close_fd(queue->call_fd);
    close_fd(queue->err_fd);
    vb_port_fini(&queue->port);
    free(queue);
}

static const struct vb_port_vtable vtable = {
    .sweep = vb_queue_sweep,
    .publish = vb_queue_publish,
    .arm = arm,
    .woken = woken,
    .find = find,
    .complete = complete,
    .destroy = destroy,
};

static bool allocate(struct vb_queue *queue, const struct vb_region *regions, uint32_t count)
{
    uint32_t size = queue->ring.size;

    queue->slots = calloc(size, sizeof(*queue->slots));
    if (queue->ring.packed)
        queue->descs = calloc(size, sizeof(*queue->descs));
    queue->regions = copy_regions(regions, count);
    queue->memory = (struct vb_memory){.regions = queue->regions, .count = count};
    if (!queue->slots || (queue->ring.packed && !queue->descs) || !queue->regions)
        return false;
    for (uint32_t i = 0; i < size; i++) {
        queue->slots[i].task.port = &queue->port;
        queue->slots[i].task.done = vb_slot_task_done;
        queue->slots[i].task.tag = (uint16_t)i;
    }
    return true;
}

struct vb_queue *vb_queue_new(struct vb_iothread *iothread, const struct vb_queue_config *config,
                              const struct vb_region *regions, uint32_t count)
{
    struct vb_queue *queue = calloc(1, sizeof(*queue));
    bool opened;

    if (!queue)
        return NULL;
    queue->call_fd = queue->err_fd = -1;
    opened = vb_port_init(&queue->port, &vtable, iothread, config->kick_fd);
    queue->port.size = config->device_size;
    queue->port.block = config->logical_block_size;
    queue->config = *config;
    queue->ring = config->ring;
    queue->write_through = config->write_through;
    if (!opened || !allocate(queue, regions, count)) {
        destroy(&queue->port);
        return NULL;
    }
    return queue;
}

struct vb_port *vb_queue_port(struct vb_queue *queue)
{
    return &queue->port;
}

uint32_t vb_queue_base(struct vb_queue *queue)
{
    return queue->ring.packed ? vb_packed_base(&queue->ring) : queue->ring.next_avail;
}

/* A duplicate of a descriptor, so that the caller may close it at any time; or -1, or -errno. */
static int duplicate(int fd)
{
    int copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);

    return fd >= 0 && copy < 0 ? -errno : copy;
}

static void set_call(struct vb_command *command)
{
    struct vb_queue *queue = vb_queue_of(command->port);

    close_fd(queue->call_fd);
    queue->call_fd = (int)command->number;
    if (queue->call_fd >= 0)
        vb_iothread_notify(command->iothread, queue->call_fd);
}

int vb_queue_set_call(struct vb_queue *queue, int fd)
{
    int copy = duplicate(fd);

    if (copy < -1)
        return copy;
    vb_port_tell(&queue->port, queue->port.iothread, set_call, copy, NULL);
    return 0;
}

static void set_err(struct vb_command *command)
{
    struct vb_queue *queue = vb_queue_of(command->port);

    close_fd(queue->err_fd);
    queue->err_fd = (int)command->number;
}

int vb_queue_set_err(struct vb_queue *queue, int fd)
{
    int copy = duplicate(fd);

    if (copy < -1)
        return copy;
    vb_port_tell(&queue->port, queue->port.iothread, set_err, copy, NULL);
    return 0;
}

static void set_write_through(struct vb_command *command)
{
    vb_queue_of(command->port)->write_through = command->number;
}

void vb_queue_set_write_through(struct vb_queue *queue, int enabled)
{
    vb_port_tell(&queue->port, queue->port.iothread, set_write_through, enabled, NULL);
}

static void set_size(struct vb_command *command)
{
    command->port->size = (uint64_t)command->number;
}

void vb_queue_set_device_size(struct vb_queue *queue, uint64_t size)
{
    vb_port_tell(&queue->port, queue->port.iothread, set_size, (int64_t)size, NULL);
}

/* Where a queue goes on. */
struct place {
    struct vb_ring ring;
    struct vb_region *regions;
    uint32_t count;
};

static void move(struct vb_command *command)
{
    struct vb_queue *queue = vb_queue_of(command->port);
    struct place *place = command->pointer;

    free(queue->regions);
    queue->regions = place->regions;
    queue->memory = (struct vb_memory){.regions = place->regions, .count = place->count};
    queue->ring.desc = place->ring.desc;
    queue->ring.avail = place->ring.avail;
    queue->ring.used = place->ring.used;
    free(place);
}

int vb_queue_move(struct vb_queue *queue, const struct vb_ring *ring,
                  const struct vb_region *regions, uint32_t count)
{
    struct place *place = malloc(sizeof(*place));
    struct vb_region *copy = copy_regions(regions, count);

    if (!place || !copy) {
        free(place);
        free(copy);
        return -ENOMEM;
    }
    *place = (struct place){*ring, copy, count};
    vb_port_tell(&queue->port, queue->port.iothread, move, 0, place);
    return 0;
}
