/* SPDX-License-Identifier: Apache-2.0 */
#include "queue.h"

#include "core/guard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/* Segments of long requests, all in flight together; beyond this a queue takes no more for now. */
#define MAX_HEAP_BYTES (16 << 20)

/* More segments than the ring between engine and Python can carry. */
#define MAX_SEGMENTS 65536

static void break_ring(struct vb_queue *queue, const char *reason)
{
    __atomic_store_n(&queue->broken, reason, __ATOMIC_RELEASE);
    if (queue->err_fd >= 0)
        eventfd_write(queue->err_fd, 1);
    vb_iothread_signal(queue->iothread);
}

/* Note what a request has written: its status, and the data of one that reads. Of a read that failed
 * any part may have been written, and an append answers at the end of what it names. */
static void log_request(const struct vb_slot *slot, uint8_t status, uint64_t written)
{
    const struct vb_request *request = &slot->request;
    const struct vb_queue *queue = slot->queue;
    bool append = request->type == VB_T_ZONE_APPEND;

    if (request->status_addr)
        vb_dirty_log_mark_host(&queue->log, &queue->memory, request->status_addr, 1);
    if (request->status == VB_STATUS_PENDING && (append || vb_into_guest(request->type)))
        vb_dirty_log_mark_segments(&queue->log, &queue->memory, slot->iovs, request->iov_count,
                                   status == VB_S_OK && !append ? written : UINT64_MAX);
}

/* How many bytes a request moves to or from the disk. */
static inline uint64_t data_length(const struct vb_request *request)
{
    uint64_t answer = request->type == VB_T_ZONE_APPEND ? VB_APPEND_SECTOR_BYTES : 0;

    return request->length - answer;
}

void vb_slot_complete(struct vb_slot *slot, uint8_t status, uint64_t written)
{
    struct vb_queue *queue = slot->queue;
    struct vb_iothread *iothread = queue->iothread;
    unsigned kind = vb_stat_kind(slot->request.type);
    uint32_t used = 0;

    if (slot->request.status_addr) {
        *(volatile uint8_t *)slot->request.status_addr = status;
        used = 1;
        if (status == VB_S_OK)
            used = written < UINT32_MAX ? (uint32_t)written + 1 : UINT32_MAX;
    }
    if (__builtin_expect(queue->log.data, 0))
        log_request(slot, status, written);
    if (kind == VB_STAT_KINDS || slot->request.status != VB_STATUS_PENDING) {
        queue->stats.invalid += status != VB_S_OK;
    } else if (status != VB_S_OK) {
        queue->stats.failed[kind]++;
    } else if (slot->begun == iothread->now) {
        queue->inline_count[kind]++;
        queue->inline_bytes[kind] += data_length(&slot->request);
    } else {
        vb_stats_add(&queue->stats, kind, 1, data_length(&slot->request),
                     iothread->now - slot->begun);
    }
    if (queue->ring.packed)
        vb_packed_put_used(&queue->ring, slot->request.head, used, slot->ring_length);
    else
        vb_ring_put_used(&queue->ring, slot->request.head, used);
    if (queue->inflight.done)
        queue->inflight.done[queue->unpublished & queue->inflight.mask] = slot->request.head;
    queue->unpublished++;
    queue->in_flight--;
    if (slot->iovs != slot->inline_iovs) {
        queue->heap_bytes -= slot->request.iov_count * sizeof(*slot->iovs);
        free(slot->iovs);
    }
    slot->state = VB_SLOT_FREE;
}

void vb_slot_fail(struct vb_slot *slot, int error)
{
    struct vb_queue *queue = slot->queue;

    if (error == EOPNOTSUPP) {
        vb_slot_complete(slot, VB_S_UNSUPP, 0);
        return;
    }
    __atomic_store_n(&queue->errors[slot->request.type != VB_T_IN], error, __ATOMIC_RELEASE);
    vb_iothread_signal(queue->iothread);
    vb_slot_complete(slot, VB_S_IOERR, 0);
}

/* Give the scratch chain's data segments to a slot; false: out of memory. */
static bool keep_segments(struct vb_slot *slot, const struct vb_chain *chain)
{
    struct vb_request *request = &slot->request;
    uint32_t from = request->iov_first;

    slot->iovs = slot->inline_iovs;
    request->iov_first = 0;
    if (request->iov_count > VB_INLINE_IOVS) {
        size_t bytes = request->iov_count * sizeof(*slot->iovs);

        slot->iovs = request->iov_count <= MAX_SEGMENTS ? malloc(bytes) : NULL;
        if (!slot->iovs) {
            slot->iovs = slot->inline_iovs;
            return false;
        }
        slot->queue->heap_bytes += bytes;
    }
    for (uint32_t i = 0; i < request->iov_count; i++)
        slot->iovs[i] = chain->iovs[from + i];
    return true;
}

/* Start the request in the scratch chain; not `walked`: there was no memory for its segments. */
static inline void begin(struct vb_queue *queue, uint16_t head, bool walked)
{
    struct vb_slot *slot = &queue->slots[head];

    queue->in_flight++;
    slot->begun = queue->iothread->now;
    if (!walked) {
        slot->request = (struct vb_request){.head = head, .status = VB_S_IOERR};
        slot->iovs = slot->inline_iovs;
        vb_slot_complete(slot, VB_S_IOERR, 0);
        return;
    }
    vb_request_parse(&slot->request, &queue->chain, head, queue->config.device_size,
                     queue->config.logical_block_size);
    if (!keep_segments(slot, &queue->chain)) {
        slot->request.iov_count = 0;
        vb_slot_complete(slot, VB_S_IOERR, 0);
    } else if (slot->request.status != VB_STATUS_PENDING) {
        vb_slot_complete(slot, slot->request.status, 0);
    } else {
        vb_slot_execute(slot);
    }
}

static void take(struct vb_queue *queue, uint16_t head)
{
    begin(queue, head, vb_chain_walk(&queue->chain, &queue->ring, &queue->memory, head));
}

static void take_packed(struct vb_queue *queue, uint16_t id, const struct vb_packed_desc *descs,
                        uint32_t count)
{
    queue->slots[id].ring_length = count;
    begin(queue, id, vb_packed_walk(&queue->chain, &queue->memory, descs, count));
}

/* Whether the kernel has a file open for us. */
static bool has_file(const struct vb_queue *queue)
{
    return queue->file >= 0 || queue->file == VB_FILE_DROPPED;
}

/* A queue that is held and idle keeps no file open: its node may be about to close it. Only the
 * iothread can do that (the io's rule), and the kernel may take a while: until then the file counts as
 * in flight. */
static void drop_file(struct vb_queue *queue)
{
    struct vb_io *io = queue->iothread->io;

    if (queue->file < 0 || queue->mapped_in_flight ||
        !(queue->file_stale || (queue->holds && !queue->in_flight)))
        return;
    queue->file_stale = false;
    if (io->vtable->drop_file(io, queue->file))
        queue->file = VB_FILE_DROPPED;
    else
        vb_queue_file_gone(queue);
}

void vb_queue_file_gone(struct vb_queue *queue)
{
    queue->file = VB_FILE_UNTRIED;
    vb_iothread_signal(queue->iothread);
}

static void take_left(struct vb_queue *queue)
{
    struct vb_inflight *inflight = &queue->inflight;

    while (vb_queue_left(queue) && !vb_queue_full(queue)) {
        uint16_t place = inflight->left_taken++;

        if (queue->ring.packed) {
            const struct vb_packed_left *left = &inflight->packed_left[place];

            take_packed(queue, left->id, inflight->left_descs, left->count);
            inflight->left_descs += left->count;
        } else {
            take(queue, inflight->left[place]);
        }
    }
    vb_run_finish(queue);
    if (queue->left_only && !vb_queue_left(queue))
        vb_iothread_signal(queue->iothread);
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

bool vb_queue_full(const struct vb_queue *queue)
{
    return queue->heap_bytes >= MAX_HEAP_BYTES;
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
    if (queue->slots[id].state != VB_SLOT_FREE ||
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
    queue->stats.sweeps++;
    if (queue->kicks_enabled) {
        vb_packed_disable_kicks(ring);
        vb_queue_log_ring(queue, ring->used, sizeof(struct vb_packed_event));
        queue->kicks_enabled = false;
    }
    /* What completes meanwhile is not shown yet, so there is an end after one lap. */
    while (!vb_queue_full(queue) && vb_packed_available(ring) &&
           take_next_packed(queue))
        ;
    vb_run_finish(queue);
    return true;
}

bool vb_queue_sweep(struct vb_queue *queue)
{
    drop_file(queue);
    return !vb_queue_looked_for(queue) && vb_queue_take(queue);
}

bool vb_queue_take(struct vb_queue *queue)
{
    struct vb_ring *ring = &queue->ring;
    uint16_t available;

    /* Without room there is nothing to do before something completes. */
    if (queue->holds || queue->broken || vb_queue_full(queue))
        return false;
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
    queue->stats.sweeps++;
    if (queue->kicks_enabled) {
        vb_ring_disable_kicks(ring);
        vb_queue_log_used(queue, 0, sizeof(uint16_t));
        queue->kicks_enabled = false;
    }
    while (available-- && !vb_queue_full(queue)) {
        uint16_t head = vb_ring_head(ring, ring->next_avail);

        if (head >= ring->size) {
            break_ring(queue, "a head is out of range");
            break;
        }
        if (queue->slots[head].state != VB_SLOT_FREE) {
            break_ring(queue, "a head was made available while in flight");
            break;
        }
        ring->next_avail++;
        if (queue->inflight.region)
            vb_inflight_take(&queue->inflight, head);
        take(queue, head);
    }
    vb_run_finish(queue);
    return true;
}

/* With EVENT_IDX it is behind the ring's elements, else in the flags. */
static void log_kick_request(struct vb_queue *queue)
{
    uint64_t end = VB_USED_ELEMENTS + (uint64_t)queue->ring.size * sizeof(struct vb_used_elem);

    vb_queue_log_used(queue, queue->ring.event_idx ? end : 0, sizeof(uint16_t));
}

bool vb_queue_arm(struct vb_queue *queue)
{
    if (queue->holds || queue->broken || vb_queue_full(queue))
        return false;
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

static bool set_regions(struct vb_queue *queue, const struct vb_region *regions, uint32_t count)
{
    struct vb_region *copy = malloc((count ? count : 1) * sizeof(*copy));

    if (!copy)
        return false;
    memcpy(copy, regions, count * sizeof(*copy));
    free(queue->regions);
    queue->regions = copy;
    queue->memory = (struct vb_memory){.regions = copy, .count = count};
    return true;
}

static bool list_queue(struct vb_iothread *iothread, struct vb_queue *queue)
{
    size_t bytes = (iothread->queue_count + 1) * sizeof(*iothread->queues);
    struct vb_queue **grown = realloc(iothread->queues, bytes);

    if (!grown)
        return false;
    iothread->queues = grown;
    iothread->queues[iothread->queue_count++] = queue;
    iothread->queues_changed = true;
    return true;
}

static void destroy(struct vb_queue *queue)
{
    vb_chain_free(&queue->chain);
    free(queue->inflight.done);
    free(queue->packed_inflight.links);
    free((void *)queue->inflight.packed_left);
    free(queue->descs);
    free(queue->regions);
    free(queue->slots);
    free(queue);
}

struct vb_queue *vb_queue_new(struct vb_iothread *iothread, const struct vb_queue_config *config,
                              const struct vb_region *regions, uint32_t count)
{
    struct vb_queue *queue = calloc(1, sizeof(*queue));
    bool listed;

    if (!queue)
        return NULL;
    queue->iothread = iothread;
    queue->config = *config;
    queue->ring = config->ring;
    queue->write_through = config->write_through;
    queue->call_fd = queue->err_fd = -1;
    queue->holds = 1;
    queue->file = VB_FILE_UNTRIED;
    queue->drop.opcode = VB_IO_DROP;
    queue->slots = calloc(config->ring.size, sizeof(*queue->slots));
    if (config->ring.packed)
        queue->descs = calloc(config->ring.size, sizeof(*queue->descs));
    if (!queue->slots || (config->ring.packed && !queue->descs) ||
        !set_regions(queue, regions, count)) {
        destroy(queue);
        return NULL;
    }
    for (uint32_t i = 0; i < config->ring.size; i++)
        queue->slots[i].queue = queue;
    vb_iothread_enter(iothread);
    listed = list_queue(iothread, queue);
    vb_iothread_leave(iothread);
    if (!listed) {
        destroy(queue);
        return NULL;
    }
    return queue;
}

uint32_t vb_queue_free(struct vb_queue *queue)
{
    struct vb_iothread *iothread = queue->iothread;
    uint32_t base = queue->ring.packed ? vb_packed_base(&queue->ring) : queue->ring.next_avail;

    vb_iothread_enter(iothread);
    for (uint32_t i = 0; i < iothread->queue_count; i++)
        if (iothread->queues[i] == queue)
            iothread->queues[i--] = iothread->queues[--iothread->queue_count];
    iothread->queues_changed = true;
    vb_iothread_leave(iothread);
    destroy(queue);
    return base;
}

void vb_queue_hold(struct vb_queue *queue)
{
    vb_iothread_enter(queue->iothread);
    queue->holds++;
    vb_iothread_leave(queue->iothread);
}

void vb_queue_release(struct vb_queue *queue)
{
    vb_iothread_enter(queue->iothread);
    queue->holds--;
    vb_iothread_leave(queue->iothread);
}

uint32_t vb_queue_in_flight(struct vb_queue *queue)
{
    uint32_t count;

    vb_iothread_enter(queue->iothread);
    count = queue->in_flight + (queue->holds && has_file(queue));
    vb_iothread_leave(queue->iothread);
    return count;
}

uint32_t vb_queue_mapped_in_flight(struct vb_queue *queue)
{
    uint32_t count;

    vb_iothread_enter(queue->iothread);
    count = queue->mapped_in_flight + (queue->file_stale || queue->file == VB_FILE_DROPPED);
    vb_iothread_leave(queue->iothread);
    return count;
}

const char *vb_queue_broken(struct vb_queue *queue)
{
    return __atomic_load_n(&queue->broken, __ATOMIC_ACQUIRE);
}

int vb_queue_take_error(struct vb_queue *queue, int write)
{
    return __atomic_exchange_n(&queue->errors[write != 0], 0, __ATOMIC_ACQ_REL);
}

void vb_queue_set_call(struct vb_queue *queue, int fd)
{
    vb_iothread_enter(queue->iothread);
    queue->call_fd = fd;
    if (fd >= 0)
        eventfd_write(fd, 1);
    vb_iothread_leave(queue->iothread);
}

void vb_queue_set_err(struct vb_queue *queue, int fd)
{
    vb_iothread_enter(queue->iothread);
    queue->err_fd = fd;
    vb_iothread_leave(queue->iothread);
}

void vb_queue_set_write_through(struct vb_queue *queue, int enabled)
{
    vb_iothread_enter(queue->iothread);
    queue->write_through = enabled;
    vb_iothread_leave(queue->iothread);
}

void vb_queue_set_device_size(struct vb_queue *queue, uint64_t size)
{
    vb_iothread_enter(queue->iothread);
    queue->config.device_size = size;
    vb_iothread_leave(queue->iothread);
}

int vb_queue_move(struct vb_queue *queue, const struct vb_ring *ring,
                  const struct vb_region *regions, uint32_t count)
{
    int result = -ENOMEM;

    vb_iothread_enter(queue->iothread);
    if (set_regions(queue, regions, count)) {
        queue->ring.desc = ring->desc;
        queue->ring.avail = ring->avail;
        queue->ring.used = ring->used;
        result = 0;
    }
    vb_iothread_leave(queue->iothread);
    return result;
}

void vb_queue_set_map(struct vb_queue *queue, struct vb_extent_map *map)
{
    vb_iothread_enter(queue->iothread);
    queue->map = map;
    if (queue->file >= 0)
        queue->file_stale = true;
    else if (queue->file == VB_FILE_NONE)
        queue->file = VB_FILE_UNTRIED;
    vb_iothread_leave(queue->iothread);
}

uint32_t vb_queue_settle(struct vb_queue *queue)
{
    uint32_t count;

    vb_iothread_enter(queue->iothread);
    count = queue->phase_in_flight[queue->phase];
    queue->phase ^= 1;
    queue->settling = count > 0;
    vb_iothread_leave(queue->iothread);
    return count;
}

uint32_t vb_queue_unsettled(struct vb_queue *queue)
{
    uint32_t count;

    vb_iothread_enter(queue->iothread);
    count = queue->phase_in_flight[queue->phase ^ 1];
    vb_iothread_leave(queue->iothread);
    return count;
}

const struct vb_stats *vb_queue_stats(struct vb_queue *queue)
{
    return &queue->stats;
}
