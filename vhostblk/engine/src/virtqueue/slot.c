/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio-blk request on its way: from a chain to tasks, and from their ends to a used element. */
#include "queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/iothread.h"

/* More segments than the ring between engine and Python can carry. */
#define MAX_SEGMENTS 65536

static inline unsigned stat_kind(uint32_t type)
{
    switch (type) {
    case VB_T_IN:
        return VB_STAT_READ;
    case VB_T_OUT:
    case VB_T_ZONE_APPEND:
        return VB_STAT_WRITE;
    case VB_T_FLUSH:
        return VB_STAT_FLUSH;
    case VB_T_DISCARD:
    case VB_T_WRITE_ZEROES:
    case VB_T_SECURE_ERASE:
        return VB_STAT_UNMAP;
    default:
        return VB_STAT_KINDS;
    }
}

/* Note what a request has written: its status, and the data of one that reads. Of a read that failed
 * any part may have been written, and an append answers at the end of what it names. */
static void log_request(const struct vb_slot *slot, uint8_t status, uint64_t written)
{
    const struct vb_request *request = &slot->request;
    const struct vb_queue *queue = vb_slot_queue(slot);
    bool append = request->type == VB_T_ZONE_APPEND;

    if (request->status_addr)
        vb_dirty_log_mark_host(&queue->log, &queue->memory, request->status_addr, 1);
    if (request->status == VB_STATUS_PENDING && (append || vb_into_guest(request->type)))
        vb_dirty_log_mark_segments(&queue->log, &queue->memory, slot->task.iovs,
                                   request->iov_count,
                                   status == VB_S_OK && !append ? written : UINT64_MAX);
}

/* How many bytes a request moves to or from the disk. */
static inline uint64_t data_length(const struct vb_request *request)
{
    uint64_t answer = request->type == VB_T_ZONE_APPEND ? VB_APPEND_SECTOR_BYTES : 0;

    return request->length - answer;
}

static inline void count(struct vb_queue *queue, const struct vb_slot *slot, uint8_t status)
{
    const struct vb_request *request = &slot->request;
    struct vb_port *port = &queue->port;
    unsigned kind = stat_kind(request->type);

    if (kind == VB_STAT_KINDS || request->status != VB_STATUS_PENDING)
        port->stats.invalid += status != VB_S_OK;
    else if (status != VB_S_OK)
        port->stats.failed[kind]++;
    else
        vb_port_count(port, &slot->task, kind, data_length(request), port->iothread->now);
}

void vb_slot_complete(struct vb_slot *slot, uint8_t status, uint64_t written)
{
    struct vb_queue *queue = vb_slot_queue(slot);
    uint32_t used = 0;

    if (slot->request.status_addr) {
        *(volatile uint8_t *)slot->request.status_addr = status;
        used = 1;
        if (status == VB_S_OK)
            used = written < UINT32_MAX ? (uint32_t)written + 1 : UINT32_MAX;
    }
    if (__builtin_expect(queue->log.data, 0))
        log_request(slot, status, written);
    count(queue, slot, status);
    if (queue->ring.packed)
        vb_packed_put_used(&queue->ring, slot->request.head, used, slot->ring_length);
    else
        vb_ring_put_used(&queue->ring, slot->request.head, used);
    if (queue->inflight.done)
        queue->inflight.done[queue->unpublished & queue->inflight.mask] = slot->request.head;
    queue->unpublished++;
    queue->port.in_flight--;
    if (slot->task.iovs != slot->inline_iovs) {
        queue->port.heap_bytes -= slot->request.iov_count * sizeof(*slot->task.iovs);
        free(slot->task.iovs);
    }
    slot->task.state = VB_TASK_FREE;
}

static uint8_t status_of(int error)
{
    return !error ? VB_S_OK : error == EOPNOTSUPP ? VB_S_UNSUPP : VB_S_IOERR;
}

void vb_slot_task_done(struct vb_task *task, int error, uint64_t bytes)
{
    vb_slot_complete(vb_slot_of(task), status_of(error), bytes);
}

/* Have Python serve the whole request, as it came. */
static void go_up(struct vb_slot *slot)
{
    struct vb_task *task = &slot->task;

    task->kind = VB_TASK_OTHER + slot->request.type;
    task->offset = slot->request.sector;
    task->length = slot->request.length;
    vb_task_go_up(task);
}

/* Give the scratch chain's data segments to a slot; false: out of memory. */
static bool keep_segments(struct vb_slot *slot, const struct vb_chain *chain)
{
    struct vb_request *request = &slot->request;
    struct vb_task *task = &slot->task;
    uint32_t from = request->iov_first;

    task->iovs = slot->inline_iovs;
    request->iov_first = 0;
    if (request->iov_count > VB_INLINE_IOVS) {
        size_t bytes = request->iov_count * sizeof(*task->iovs);

        task->iovs = request->iov_count <= MAX_SEGMENTS ? malloc(bytes) : NULL;
        if (!task->iovs) {
            task->iovs = slot->inline_iovs;
            return false;
        }
        task->port->heap_bytes += bytes;
    }
    for (uint32_t i = 0; i < request->iov_count; i++)
        task->iovs[i] = chain->iovs[from + i];
    task->iov_count = request->iov_count;
    return true;
}

static void get_id(struct vb_slot *slot)
{
    const char *serial = vb_slot_queue(slot)->config.serial;
    const struct iovec *iovs = slot->task.iovs;
    uint32_t done = 0;

    for (uint32_t i = 0; i < slot->request.iov_count && done < VB_ID_BYTES; i++) {
        size_t taken = VB_ID_BYTES - done;

        if (taken > iovs[i].iov_len)
            taken = iovs[i].iov_len;
        memcpy(iovs[i].iov_base, serial + done, taken);
        done += taken;
    }
    vb_slot_complete(slot, VB_S_OK, done);
}

static inline void start(struct vb_slot *slot, uint16_t kind, uint8_t flags)
{
    struct vb_task *task = &slot->task;

    task->offset = slot->request.sector * VB_SECTOR_SIZE;
    task->length = slot->request.length;
    task->kind = kind;
    task->flags = flags;
    vb_task_start(task);
}

static void segment_done(struct vb_task *task, int error, uint64_t bytes);

/* Start the next segment of a DISCARD or WRITE_ZEROES; false: all are done. */
static bool start_segment(struct vb_slot *slot)
{
    const struct vb_queue *queue = vb_slot_queue(slot);
    struct vb_task *task = &slot->task;
    const struct vb_discard_segment *segment;

    if (slot->segment == slot->segment_count)
        return false;
    segment = &slot->segments[slot->segment++];
    task->offset = segment->sector * VB_SECTOR_SIZE;
    task->length = (uint64_t)segment->sectors * VB_SECTOR_SIZE;
    task->kind = slot->request.type == VB_T_WRITE_ZEROES ? VB_TASK_WRITE_ZEROES : VB_TASK_DISCARD;
    task->flags = VB_TASK_NO_FALLBACK | (queue->write_through ? VB_TASK_FUA : 0) |
                  (segment->flags & VB_DISCARD_UNMAP ? VB_TASK_MAY_UNMAP : 0);
    vb_task_start(task);
    return true;
}

static void segment_done(struct vb_task *task, int error, uint64_t bytes)
{
    struct vb_slot *slot = vb_slot_of(task);

    if (!error && start_segment(slot))
        return;
    free(slot->segments);
    slot->segments = NULL;
    task->done = vb_slot_task_done;
    if (error == EOPNOTSUPP) /* Python knows what else to do, for all segments again */
        go_up(slot);
    else
        vb_slot_complete(slot, status_of(error), 0);
}

static __attribute__((noinline)) void begin_unmap(struct vb_queue *queue, struct vb_slot *slot)
{
    struct vb_request *request = &slot->request;
    struct vb_discard_segment segments[VB_MAX_DISCARD_SEGMENTS];
    uint64_t copied = 0;
    uint8_t status;

    if (!queue->config.writable || request->length > sizeof(segments)) {
        vb_slot_complete(slot, VB_S_IOERR, 0);
        return;
    }
    for (uint32_t i = 0; i < request->iov_count; i++) {
        memcpy((char *)segments + copied, slot->task.iovs[i].iov_base, slot->task.iovs[i].iov_len);
        copied += slot->task.iovs[i].iov_len;
    }
    status = vb_discard_validate(segments, copied, request->type, queue->port.size,
                                 queue->port.block);
    if (status == VB_STATUS_PENDING) {
        slot->segments = malloc(copied);
        status = slot->segments ? VB_STATUS_PENDING : VB_S_IOERR;
    }
    if (status != VB_STATUS_PENDING) {
        vb_slot_complete(slot, status, 0);
        return;
    }
    memcpy(slot->segments, segments, copied);
    slot->segment = 0;
    slot->segment_count = copied / sizeof(*segments);
    slot->task.done = segment_done;
    start_segment(slot);
}

static void execute(struct vb_queue *queue, struct vb_slot *slot)
{
    switch (slot->request.type) {
    case VB_T_IN:
        start(slot, VB_TASK_READ, 0);
        break;
    case VB_T_OUT:
        if (queue->config.writable)
            start(slot, VB_TASK_WRITE, queue->write_through ? VB_TASK_FUA : 0);
        else
            vb_slot_complete(slot, VB_S_IOERR, 0);
        break;
    case VB_T_FLUSH:
        start(slot, VB_TASK_FLUSH, 0);
        break;
    case VB_T_GET_ID:
        get_id(slot);
        break;
    case VB_T_DISCARD:
    case VB_T_WRITE_ZEROES:
        begin_unmap(queue, slot);
        break;
    case VB_T_GET_LIFETIME: /* rare, and only Python knows whether the storage can */
    case VB_T_SECURE_ERASE:
    case VB_T_ZONE_APPEND:
    case VB_T_ZONE_REPORT:
    case VB_T_ZONE_OPEN:
    case VB_T_ZONE_CLOSE:
    case VB_T_ZONE_FINISH:
    case VB_T_ZONE_RESET:
    case VB_T_ZONE_RESET_ALL:
        go_up(slot);
        break;
    default:
        vb_slot_complete(slot, VB_S_UNSUPP, 0);
    }
}

void vb_slot_begin(struct vb_queue *queue, uint16_t head, bool walked)
{
    struct vb_slot *slot = &queue->slots[head];

    queue->port.in_flight++;
    slot->task.begun = queue->port.iothread->now;
    slot->task.state = VB_TASK_STARTED;
    if (!walked) {
        slot->request = (struct vb_request){.head = head, .status = VB_S_IOERR};
        slot->task.iovs = slot->inline_iovs;
        vb_slot_complete(slot, VB_S_IOERR, 0);
        return;
    }
    vb_request_parse(&slot->request, &queue->chain, head, queue->port.size, queue->port.block);
    if (!keep_segments(slot, &queue->chain)) {
        slot->request.iov_count = 0;
        vb_slot_complete(slot, VB_S_IOERR, 0);
    } else if (slot->request.status != VB_STATUS_PENDING) {
        vb_slot_complete(slot, slot->request.status, 0);
    } else {
        execute(queue, slot);
    }
}

void vb_queue_describe(const struct vb_queue *queue, uint32_t n, const struct vb_upcall *upcalls,
                       struct vb_request *requests)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct vb_upcall *upcall = &upcalls[i];

        requests[i] = queue->slots[upcall->tag].request;
        requests[i].iov_first = upcall->iov_first;
    }
}
