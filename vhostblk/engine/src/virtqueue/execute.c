/* SPDX-License-Identifier: Apache-2.0 */
/* What each type of request does, where the extent map allows it to be done here.
 *
 * File I/O that the page cache can serve is attempted at once, because io_uring would do no more
 * than that, or hand it to a worker thread (buffered writes, tmpfs), which costs several times the
 * copy itself. A read is attempted with RWF_NOWAIT and goes to io_uring where it would block. Few
 * file systems take RWF_NOWAIT for buffered writes, so a write is simply done; where one turns out
 * to be slow (the kernel throttles writers when too much is dirty), writes go to io_uring for a
 * while, so that one busy disk does not hold up the other queues.
 *
 * Requests of one sweep that follow each other in the file are attempted together, as a run: that
 * saves system calls where a guest reads or writes sequentially in small pieces. Where a run does
 * not succeed as a whole, each of its requests goes its own way as if there had been none.
 *
 * Flushes and writes with RWF_DSYNC of one file run one at a time (`sync.cdef.h`). A request that does
 * not get the turn goes up: Python waits for it, and flushes once for all that wait.
 */
#define _GNU_SOURCE
#include "queue.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* A write that took longer than this was throttled; try no others for a while. */
#define SLOW_WRITE_NS 2000000
#define SLOW_PENALTY_NS 100000000

/* Longest transfer that is attempted at once, so that other queues get their turn. */
#define MAX_INLINE_BYTES (256 << 10)

/* The map's file as the io keeps it, or VB_FILE_NONE. */
static int kept_file(const struct vb_slot *slot)
{
    struct vb_queue *queue = slot->queue;
    struct vb_io *io = queue->iothread->io;

    if (queue->file_stale || slot->map != queue->map)
        return VB_FILE_NONE;
    if (queue->file == VB_FILE_UNTRIED)
        queue->file = io->vtable->keep_file(io, slot->map->fd, &queue->drop);
    return queue->file;
}

static void queue_op(struct vb_slot *slot, enum vb_io_opcode opcode, int flags)
{
    struct vb_io *io = slot->queue->iothread->io;

    slot->op.opcode = opcode;
    slot->op.fd = slot->map->fd;
    slot->op.file = kept_file(slot);
    slot->op.flags = flags;
    io->vtable->queue(io, &slot->op);
}

/* Take the turn to sync the file; false: another has it. */
static bool begin_sync(struct vb_slot *slot)
{
    struct vb_sync *sync = slot->queue->map->sync;

    slot->syncing = sync && vb_sync_try(sync, VB_SYNC_ENGINE);
    return slot->syncing || !sync;
}

static void end_sync(struct vb_slot *slot, struct vb_extent_map *map)
{
    if (slot->syncing)
        vb_sync_end(map->sync, VB_SYNC_ENGINE);
    slot->syncing = false;
}

static void begin_mapped(struct vb_slot *slot)
{
    slot->state = VB_SLOT_MAPPED;
    slot->map = slot->queue->map;
    slot->phase = slot->queue->phase;
    slot->queue->mapped_in_flight++;
    slot->queue->phase_in_flight[slot->phase]++;
}

static void end_mapped(struct vb_slot *slot)
{
    struct vb_queue *queue = slot->queue;

    end_sync(slot, slot->map);
    free(slot->segments);
    slot->segments = NULL;
    if (!--queue->phase_in_flight[slot->phase] && queue->settling && slot->phase != queue->phase) {
        queue->settling = false;
        vb_iothread_signal(queue->iothread);
    }
    if (!--queue->mapped_in_flight && queue->holds)
        vb_iothread_signal(queue->iothread);
}

static void finish_mapped(struct vb_slot *slot, int64_t result)
{
    end_mapped(slot);
    if (result >= 0)
        vb_slot_complete(slot, VB_S_OK,
                         slot->request.type == VB_T_IN ? slot->request.length : 0);
    else
        vb_slot_fail(slot, (int)-result);
}

static void zero_segments(const struct iovec *iovs, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        memset(iovs[i].iov_base, 0, iovs[i].iov_len);
}

/* Skip `bytes` of the segments that the operation still has to transfer. */
static void skip_segments(struct vb_slot *slot, uint64_t bytes)
{
    struct vb_io_op *op = &slot->op;
    struct iovec *iovs = slot->iovs + (op->iovs - slot->iovs);

    slot->done += bytes;
    op->offset += bytes;
    while (op->count && bytes >= iovs->iov_len) {
        bytes -= iovs->iov_len;
        iovs++;
        op->count--;
    }
    if (op->count) {
        /* What remains is noted when the request completes. */
        if (slot->request.type == VB_T_IN)
            vb_queue_log_data(slot->queue, (uint64_t)(uintptr_t)iovs->iov_base, bytes);
        iovs->iov_base = (char *)iovs->iov_base + bytes;
        iovs->iov_len -= bytes;
    }
    op->iovs = iovs;
}

/* Whether an attempt at once may pay for this request. */
static bool worth_attempt(const struct vb_slot *slot)
{
    const struct vb_queue *queue = slot->queue;

    if (!(slot->map->flags & VB_EXTENT_BUFFERED) || slot->request.length > MAX_INLINE_BYTES)
        return false;
    return slot->request.type != VB_T_OUT ||
           (!queue->write_through && queue->iothread->now >= queue->slow_until);
}

/* Transfer at once what can be; bytes, or -1. Of an error, the same done asynchronously tells. */
static ssize_t attempt(struct vb_queue *queue, const struct vb_slot *slot, const struct iovec *iovs,
                       uint32_t count)
{
    const struct vb_extent_map *map = slot->map;
    int limit = count < IOV_MAX ? (int)count : IOV_MAX;
    uint64_t before;
    ssize_t result;

    /* tmpfs does not know RWF_NOWAIT, and does not need it. */
    if (slot->request.type == VB_T_IN)
        return preadv2(map->fd, iovs, limit, slot->op.offset,
                       map->flags & VB_EXTENT_IN_MEMORY ? 0 : RWF_NOWAIT);
    before = vb_now();
    result = pwritev(map->fd, iovs, limit, slot->op.offset);
    if (vb_now() - before > SLOW_WRITE_NS)
        queue->slow_until = before + SLOW_PENALTY_NS;
    return result;
}

static void queue_transfer(struct vb_slot *slot)
{
    if (slot->request.type == VB_T_IN)
        queue_op(slot, VB_IO_READ, 0);
    else
        queue_op(slot, VB_IO_WRITE, slot->queue->write_through ? RWF_DSYNC : 0);
}

/* The part of what was transferred after which the rest is still aligned. */
static int64_t whole_blocks(const struct vb_slot *slot, int64_t bytes)
{
    return bytes & -(int64_t)(slot->map->alignment ? slot->map->alignment : 1);
}

static void transfer_alone(struct vb_slot *slot)
{
    ssize_t result = attempt(slot->queue, slot, slot->op.iovs, slot->op.count);

    if (result >= 0 && (uint64_t)result == slot->request.length) {
        finish_mapped(slot, 0);
        return;
    }
    if (result > 0)
        skip_segments(slot, whole_blocks(slot, result));
    queue_transfer(slot);
}

/* Put a request behind the run, if it goes on there. */
static bool join_run(struct vb_run *run, struct vb_slot *slot)
{
    const struct vb_slot *last = run->last;

    if (!run->count || last->request.type != slot->request.type || last->map != slot->map ||
        run->end != slot->op.offset || run->bytes + slot->request.length > MAX_INLINE_BYTES ||
        run->iov_count + slot->op.count > VB_RUN_IOVS)
        return false;
    if (run->count == 1)
        memcpy(run->iovs, run->first->op.iovs, run->iov_count * sizeof(*run->iovs));
    memcpy(run->iovs + run->iov_count, slot->op.iovs, slot->op.count * sizeof(*run->iovs));
    run->last->next_in_run = slot;
    return true;
}

static void put_in_run(struct vb_queue *queue, struct vb_slot *slot)
{
    struct vb_run *run = &queue->run;

    slot->next_in_run = NULL;
    if (!join_run(run, slot)) {
        vb_run_finish(queue);
        run->first = slot;
    }
    run->last = slot;
    run->end = slot->op.offset + slot->request.length;
    run->bytes += slot->request.length;
    run->iov_count += slot->op.count;
    run->count++;
}

void vb_run_finish(struct vb_queue *queue)
{
    struct vb_run *run = &queue->run;
    struct vb_slot *slot = run->first;
    bool together = false;

    if (!run->count)
        return;
    if (run->count > 1) {
        ssize_t result = attempt(queue, slot, run->iovs, run->iov_count);

        together = result >= 0 && (uint64_t)result == run->bytes;
        if (together)
            queue->stats.merged[vb_stat_kind(slot->request.type)] += run->count - 1;
    }
    while (slot) {
        struct vb_slot *next = slot->next_in_run;

        if (together)
            finish_mapped(slot, 0);
        else
            transfer_alone(slot);
        slot = next;
    }
    run->first = run->last = NULL;
    run->count = run->iov_count = 0;
    run->bytes = 0;
}

/* Account for a read or a write that nothing else keeps from being done here; false: it must wait,
 * and is not accounted for. */
static bool within_budget(const struct vb_slot *slot)
{
    struct vb_budget *budget = slot->queue->map->budget;

    return !budget || vb_budget_spend(budget, slot->request.type == VB_T_OUT, slot->request.length,
                                      slot->queue->iothread->now);
}

static enum vb_extent_access access_of(const struct vb_slot *slot)
{
    if (slot->request.type != VB_T_OUT)
        return VB_ACCESS_READ;
    return slot->queue->write_through ? VB_ACCESS_WRITE_THROUGH : VB_ACCESS_WRITE;
}

static void execute_transfer(struct vb_slot *slot)
{
    struct vb_queue *queue = slot->queue;
    struct vb_request *request = &slot->request;
    bool write = request->type == VB_T_OUT;
    uint64_t offset = request->sector * VB_SECTOR_SIZE, file_offset = 0;
    enum vb_extent_verdict verdict;

    if (write && !queue->config.writable) {
        vb_slot_complete(slot, VB_S_IOERR, 0);
        return;
    }
    verdict = vb_extent_lookup(queue->map, offset, request->length, access_of(slot), &file_offset);
    if (verdict == VB_GO_UP ||
        (verdict == VB_GO_FILE &&
         !vb_extent_aligned(queue->map, file_offset, slot->iovs, request->iov_count)) ||
        (verdict == VB_GO_FILE && write && queue->write_through && !begin_sync(slot))) {
        vb_slot_go_up(slot);
        return;
    }
    if (!within_budget(slot)) {
        end_sync(slot, queue->map);
        vb_slot_go_up(slot);
        return;
    }
    if (verdict != VB_GO_FILE) {
        if (verdict == VB_GO_ZERO)
            zero_segments(slot->iovs, request->iov_count);
        vb_slot_complete(slot, VB_S_OK, write ? 0 : request->length);
        return;
    }
    begin_mapped(slot);
    slot->op.iovs = slot->iovs;
    slot->op.count = request->iov_count;
    slot->op.offset = file_offset;
    if (worth_attempt(slot))
        put_in_run(queue, slot);
    else
        queue_transfer(slot);
}

static void execute_flush(struct vb_slot *slot)
{
    struct vb_extent_map *map = slot->queue->map;

    if (map && map->flags & VB_EXTENT_NO_FLUSH) {
        vb_slot_complete(slot, VB_S_OK, 0);
    } else if (map && map->flags & VB_EXTENT_FLUSH && begin_sync(slot)) {
        begin_mapped(slot);
        queue_op(slot, VB_IO_FSYNC, 0);
    } else {
        vb_slot_go_up(slot);
    }
}

static void execute_get_id(struct vb_slot *slot)
{
    const char *serial = slot->queue->config.serial;
    uint32_t done = 0;

    for (uint32_t i = 0; i < slot->request.iov_count && done < VB_ID_BYTES; i++) {
        size_t taken = VB_ID_BYTES - done;

        if (taken > slot->iovs[i].iov_len)
            taken = slot->iovs[i].iov_len;
        memcpy(slot->iovs[i].iov_base, serial + done, taken);
        done += taken;
    }
    vb_slot_complete(slot, VB_S_OK, done);
}

/* Start the next segment of a DISCARD or WRITE_ZEROES; false: all are done. */
static bool start_segment(struct vb_slot *slot)
{
    const struct vb_extent_map *map = slot->map;

    while (slot->segment < slot->segment_count) {
        const struct vb_discard_segment *segment = &slot->segments[slot->segment++];
        bool zeroes = slot->request.type == VB_T_WRITE_ZEROES;
        bool punch = map->flags & VB_EXTENT_DISCARD &&
                     (!zeroes || segment->flags & VB_DISCARD_UNMAP);

        if (!segment->sectors)
            continue;
        slot->op.offset = map->offset + segment->sector * VB_SECTOR_SIZE;
        slot->op.length = (uint64_t)segment->sectors * VB_SECTOR_SIZE;
        queue_op(slot, VB_IO_FALLOCATE,
                 FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE));
        return true;
    }
    return false;
}

/* Whether the map allows a discard, or write-zeroes, anywhere on the device. */
static bool may_unmap(const struct vb_queue *queue, bool zeroes)
{
    const struct vb_extent_map *map = queue->map;

    if (!map || !(map->flags & VB_EXTENT_WRITE) || map->size < queue->config.device_size)
        return false;
    if (map->budget)
        return !zeroes && map->flags & VB_EXTENT_NO_DISCARD;
    if (map->kind == VB_EXTENT_NULL)
        return true;
    if (map->kind != VB_EXTENT_LINEAR || map->alignment > queue->config.logical_block_size)
        return false;
    if (zeroes) /* with the cache off they have to be flushed, too */
        return map->flags & VB_EXTENT_ZERO_RANGE && !queue->write_through;
    return map->flags & (VB_EXTENT_DISCARD | VB_EXTENT_NO_DISCARD);
}

static void execute_unmap(struct vb_slot *slot)
{
    struct vb_queue *queue = slot->queue;
    struct vb_request *request = &slot->request;
    struct vb_extent_map *map = queue->map;
    bool zeroes = request->type == VB_T_WRITE_ZEROES;
    struct vb_discard_segment segments[VB_MAX_DISCARD_SEGMENTS];
    uint64_t copied = 0;
    uint8_t status;

    if (!queue->config.writable || request->length > sizeof(segments)) {
        vb_slot_complete(slot, VB_S_IOERR, 0);
        return;
    }
    for (uint32_t i = 0; i < request->iov_count; i++) {
        memcpy((char *)segments + copied, slot->iovs[i].iov_base, slot->iovs[i].iov_len);
        copied += slot->iovs[i].iov_len;
    }
    status = vb_discard_validate(segments, copied, request->type, queue->config.device_size,
                                 queue->config.logical_block_size);
    if (status != VB_STATUS_PENDING) {
        vb_slot_complete(slot, status, 0);
        return;
    }
    if (!may_unmap(queue, zeroes)) {
        vb_slot_go_up(slot);
        return;
    }
    if (map->kind == VB_EXTENT_NULL || (!zeroes && map->flags & VB_EXTENT_NO_DISCARD)) {
        vb_slot_complete(slot, VB_S_OK, 0);
        return;
    }
    slot->segments = malloc(copied);
    if (!slot->segments) {
        vb_slot_complete(slot, VB_S_IOERR, 0);
        return;
    }
    memcpy(slot->segments, segments, copied);
    slot->segment = 0;
    slot->segment_count = copied / sizeof(*segments);
    begin_mapped(slot);
    if (!start_segment(slot))
        finish_mapped(slot, 0);
}

void vb_slot_execute(struct vb_slot *slot)
{
    slot->done = 0;
    slot->sync_error = 0;
    slot->syncing = false;
    switch (slot->request.type) {
    case VB_T_IN:
    case VB_T_OUT:
        execute_transfer(slot);
        break;
    case VB_T_FLUSH:
        execute_flush(slot);
        break;
    case VB_T_GET_ID:
        execute_get_id(slot);
        break;
    case VB_T_DISCARD:
    case VB_T_WRITE_ZEROES:
        execute_unmap(slot);
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
        vb_slot_go_up(slot);
        break;
    default:
        vb_slot_complete(slot, VB_S_UNSUPP, 0);
    }
}

/* A failed flush makes all later ones fail. The caller has the turn. */
static int64_t judge_flush(struct vb_extent_map *map, int64_t result)
{
    if (!map->sync)
        return result;
    if (result < 0)
        map->sync->error = (int32_t)-result;
    return -(int64_t)map->sync->error;
}

static void continue_transfer(struct vb_slot *slot)
{
    struct vb_io_op *op = &slot->op;
    int64_t result = op->result, whole;

    if (result == -EAGAIN || result == -EINTR) {
        queue_op(slot, op->opcode, op->flags);
        return;
    }
    if (result < 0 && op->flags & RWF_DSYNC && slot->syncing) {
        /* Either the write failed, or its flush. A failed flush may have lost data of other
         * requests, and counts as such. The write is repeated without RWF_DSYNC to tell them apart;
         * no other flush begins before that has ended. */
        slot->sync_error = result;
        queue_op(slot, VB_IO_WRITE, 0);
        return;
    }
    if (result < 0) {
        finish_mapped(slot, result);
        return;
    }
    if (slot->done + result == slot->request.length) {
        finish_mapped(slot, slot->sync_error ? judge_flush(slot->map, slot->sync_error) : 0);
        return;
    }
    whole = whole_blocks(slot, result);
    if (op->opcode == VB_IO_READ && (!result || whole != result)) {
        /* The file ends here, maybe inside a block. */
        skip_segments(slot, result);
        zero_segments(op->iovs, op->count);
        finish_mapped(slot, 0);
    } else if (result) {
        skip_segments(slot, whole); /* a part of a block is written again */
        queue_op(slot, op->opcode, op->flags);
    } else {
        finish_mapped(slot, -ENOSPC);
    }
}

void vb_slot_continue(struct vb_slot *slot)
{
    int64_t result = slot->op.result;

    switch (slot->op.opcode) {
    case VB_IO_READ:
    case VB_IO_WRITE:
        continue_transfer(slot);
        return;
    case VB_IO_FSYNC:
        if (result == -EINTR) {
            queue_op(slot, VB_IO_FSYNC, 0);
            return;
        }
        result = judge_flush(slot->map, result);
        finish_mapped(slot, result);
        return;
    case VB_IO_FALLOCATE:
        if (result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV) {
            /* Not on this file system: Python knows what else to do, for all segments again. */
            end_mapped(slot);
            vb_slot_go_up(slot);
            return;
        }
        if (result == -EINTR)
            queue_op(slot, VB_IO_FALLOCATE, slot->op.flags);
        else if (result < 0 || !start_segment(slot))
            finish_mapped(slot, result);
        return;
    }
}
