/* SPDX-License-Identifier: Apache-2.0 */
/* What each kind of task does, where the extent map allows it to be done here.
 *
 * File I/O that the page cache can serve is attempted at once (`run.c`), because io_uring would do no
 * more than that, or hand it to a worker thread (buffered writes, tmpfs), which costs several times
 * the copy itself.
 *
 * Flushes and writes with RWF_DSYNC of one file run one at a time (`sync.cdef.h`). A task that does
 * not get the turn goes up: Python waits for it, and flushes once for all that wait.
 */
#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "iothread.h"
#include "pieces.h"
#include "port.h"

/* The map's file as the io keeps it, or VB_FILE_NONE. */
static int kept_file(const struct vb_task *task)
{
    struct vb_port *port = task->port;
    struct vb_io *io = port->iothread->io;

    if (port->file_stale || task->map != port->map)
        return VB_FILE_NONE;
    if (port->file == VB_FILE_UNTRIED)
        port->file = io->vtable->keep_file(io, task->map->fd, &port->drop);
    return port->file;
}

static void queue_op(struct vb_task *task, enum vb_io_opcode opcode, int flags)
{
    struct vb_io *io = task->port->iothread->io;

    task->op.opcode = opcode;
    task->op.fd = task->map->fd;
    task->op.file = kept_file(task);
    task->op.flags = flags;
    io->vtable->queue(io, &task->op);
}

/* Take the turn to sync the file; false: another has it. */
static bool begin_sync(struct vb_task *task)
{
    struct vb_sync *sync = task->port->map->sync;

    task->syncing = sync && vb_sync_try(sync, VB_SYNC_ENGINE);
    return task->syncing || !sync;
}

static void end_sync(struct vb_task *task, struct vb_extent_map *map)
{
    if (task->syncing)
        vb_sync_end(map->sync, VB_SYNC_ENGINE);
    task->syncing = false;
}

static void begin_mapped(struct vb_task *task)
{
    struct vb_port *port = task->port;

    task->map = port->map;
    task->phase = port->phase;
    task->transferred = 0;
    task->end = task->length;
    task->zeroing = false;
    task->sync_error = 0;
    port->mapped_in_flight++;
    port->phase_in_flight[task->phase]++;
}

static void end_mapped(struct vb_task *task)
{
    struct vb_port *port = task->port;

    end_sync(task, task->map);
    port->mapped_in_flight--;
    /* Python may reuse storage that the operation has used. */
    __atomic_store_n(&port->phase_in_flight[task->phase], port->phase_in_flight[task->phase] - 1,
                     __ATOMIC_RELEASE);
    if (__builtin_expect(port->settling, 0) && task->phase != port->phase &&
        !port->phase_in_flight[task->phase]) {
        port->settling = false;
        vb_port_news(port);
    }
}

/* End a task with a negative errno, or not. */
static void finish(struct vb_task *task, int64_t result)
{
    if (result >= 0) {
        task->done(task, 0, task->kind == VB_TASK_READ ? task->length : 0);
        return;
    }
    if (result != -EOPNOTSUPP)
        vb_port_note_error(task->port, task, (int)-result);
    task->done(task, (int)-result, 0);
}

void vb_task_finish_mapped(struct vb_task *task, int64_t result)
{
    vb_task_restore(task);
    end_mapped(task);
    finish(task, result);
}

/* The map does not cover it, or the file can't do it. */
static void not_here(struct vb_task *task)
{
    if (task->flags & VB_TASK_NO_FALLBACK)
        finish(task, -EOPNOTSUPP);
    else
        vb_task_go_up(task);
}

void vb_zero_segments(const struct iovec *iovs, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        memset(iovs[i].iov_base, 0, iovs[i].iov_len);
}

void vb_task_skip(struct vb_task *task, uint64_t bytes)
{
    struct vb_io_op *op = &task->op;

    task->transferred += bytes;
    op->offset += bytes;
    while (op->count && bytes >= op->iovs->iov_len) {
        bytes -= op->iovs->iov_len;
        vb_task_restore(task);
        op->iovs++;
        op->count--;
    }
    if (bytes) {
        struct iovec *iov = task->iovs + (op->iovs - task->iovs);

        iov->iov_base = (char *)iov->iov_base + bytes;
        iov->iov_len -= bytes;
        task->cut += bytes;
    }
}

void vb_task_queue_transfer(struct vb_task *task)
{
    if (vb_task_writes(task)) /* after a failure see `continue_transfer` */
        queue_op(task, VB_IO_WRITE,
                 task->flags & VB_TASK_FUA && !task->sync_error ? RWF_DSYNC : 0);
    else
        queue_op(task, VB_IO_READ, 0);
}

/* Account for a read or a write that nothing else keeps from being done here; false: it must wait,
 * and is not accounted for. */
static bool within_budget(const struct vb_task *task)
{
    struct vb_budget *budget = task->port->map->budget;

    return !budget ||
           vb_budget_spend(budget, vb_task_writes(task), task->length, task->port->iothread->now);
}

static enum vb_extent_access access_of(const struct vb_task *task)
{
    if (!vb_task_writes(task))
        return VB_ACCESS_READ;
    return task->flags & VB_TASK_FUA ? VB_ACCESS_WRITE_THROUGH : VB_ACCESS_WRITE;
}

static void execute_transfer(struct vb_task *task)
{
    struct vb_port *port = task->port;
    enum vb_extent_access access = access_of(task);
    uint64_t file_offset = 0;
    enum vb_extent_verdict verdict =
        vb_extent_lookup(port->map, task->offset, task->length, access, &file_offset);

    if (verdict == VB_GO_UP ||
        (verdict == VB_GO_FILE &&
         !vb_extent_aligned(port->map, file_offset, task->iovs, task->iov_count)) ||
        (verdict == VB_GO_FILE && access == VB_ACCESS_WRITE_THROUGH && !begin_sync(task))) {
        not_here(task);
        return;
    }
    if (!within_budget(task)) {
        end_sync(task, port->map);
        not_here(task);
        return;
    }
    if (verdict == VB_GO_NULL || (verdict == VB_GO_ZERO && task->length <= VB_MAX_INLINE_BYTES)) {
        if (verdict == VB_GO_ZERO) {
            port->turn.bytes -= (int64_t)task->length;
            vb_zero_segments(task->iovs, task->iov_count);
        }
        finish(task, 0);
        return;
    }
    begin_mapped(task);
    task->op.iovs = task->iovs;
    task->op.count = task->iov_count;
    task->op.offset = file_offset;
    if (verdict == VB_GO_ZERO) {
        vb_pieces_zero(task);
    } else if (task->length > VB_MAX_INLINE_BYTES) {
        vb_pieces_begin(task);
    } else if (vb_run_takes(task)) {
        vb_run_add(port, task);
    } else {
        vb_task_queue_transfer(task);
    }
}

static void execute_flush(struct vb_task *task)
{
    struct vb_extent_map *map = task->port->map;

    if (map && map->flags & VB_EXTENT_NO_FLUSH) {
        finish(task, 0);
    } else if (map && map->flags & VB_EXTENT_FLUSH && begin_sync(task)) {
        begin_mapped(task);
        queue_op(task, VB_IO_FSYNC, 0);
    } else {
        not_here(task);
    }
}

/* Whether the map allows a discard, or write-zeroes, of a range. */
static bool may_unmap(const struct vb_task *task, const struct vb_extent_map *map)
{
    bool zeroes = task->kind == VB_TASK_WRITE_ZEROES;

    if (!map || !(map->flags & VB_EXTENT_WRITE) || task->offset > map->size ||
        task->length > map->size - task->offset)
        return false;
    if (map->budget)
        return !zeroes && map->flags & VB_EXTENT_NO_DISCARD;
    if (map->kind == VB_EXTENT_NULL)
        return true;
    if (map->kind != VB_EXTENT_LINEAR || map->alignment > task->port->block)
        return false;
    if (zeroes) /* those that have to be on stable storage need a flush, too */
        return map->flags & VB_EXTENT_ZERO_RANGE && !(task->flags & VB_TASK_FUA);
    return map->flags & (VB_EXTENT_DISCARD | VB_EXTENT_NO_DISCARD);
}

static void execute_unmap(struct vb_task *task)
{
    struct vb_extent_map *map = task->port->map;
    bool zeroes = task->kind == VB_TASK_WRITE_ZEROES, punch;

    if (!may_unmap(task, map)) {
        not_here(task);
        return;
    }
    if (map->kind == VB_EXTENT_NULL || (!zeroes && map->flags & VB_EXTENT_NO_DISCARD) ||
        !task->length) {
        finish(task, 0);
        return;
    }
    punch = map->flags & VB_EXTENT_DISCARD && (!zeroes || task->flags & VB_TASK_MAY_UNMAP);
    begin_mapped(task);
    task->op.offset = map->offset + task->offset;
    task->op.length = task->length;
    queue_op(task, VB_IO_FALLOCATE,
             FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE));
}

void vb_task_start(struct vb_task *task)
{
    switch (task->kind) {
    case VB_TASK_READ:
    case VB_TASK_WRITE:
        execute_transfer(task);
        break;
    case VB_TASK_FLUSH:
        execute_flush(task);
        break;
    case VB_TASK_DISCARD:
    case VB_TASK_WRITE_ZEROES:
        execute_unmap(task);
        break;
    default:
        vb_task_go_up(task);
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

/* All has been transferred. A write that was repeated for an error of its flush has that outcome. */
static void finish_transfer(struct vb_task *task)
{
    int64_t result = task->sync_error ? judge_flush(task->map, task->sync_error) : 0;

    vb_task_finish_mapped(task, result);
}

void vb_task_transferred(struct vb_task *task, int64_t bytes)
{
    struct vb_io_op *op = &task->op;
    int64_t whole = vb_task_whole_blocks(task, bytes);

    if (task->transferred + (uint64_t)bytes == task->end) {
        if (task->end < task->length)
            vb_pieces_next(task, (uint64_t)bytes);
        else
            finish_transfer(task);
    } else if (!vb_task_writes(task) && (!bytes || whole != bytes)) {
        /* The file ends here, maybe inside a block. */
        vb_task_skip(task, bytes);
        vb_pieces_zero(task);
    } else if (bytes) {
        vb_task_skip(task, whole); /* a part of a block is written again */
        queue_op(task, op->opcode, op->flags);
    } else {
        vb_task_finish_mapped(task, -ENOSPC);
    }
}

static void continue_transfer(struct vb_task *task)
{
    struct vb_io_op *op = &task->op;
    int64_t result = op->result;

    if (result == -EAGAIN || result == -EINTR) {
        queue_op(task, op->opcode, op->flags);
        return;
    }
    if (result < 0 && op->flags & RWF_DSYNC && task->syncing) {
        /* Either the write failed, or its flush. A failed flush may have lost data of other
         * requests, and counts as such. The write is repeated without RWF_DSYNC to tell them apart;
         * no other flush begins before that has ended. */
        task->sync_error = result;
        queue_op(task, VB_IO_WRITE, 0);
        return;
    }
    if (result < 0)
        vb_task_finish_mapped(task, result);
    else
        vb_task_transferred(task, result);
}

static void continue_flush(struct vb_task *task)
{
    if (task->op.result == -EINTR)
        queue_op(task, VB_IO_FSYNC, 0);
    else
        vb_task_finish_mapped(task, judge_flush(task->map, task->op.result));
}

static void continue_fallocate(struct vb_task *task)
{
    int64_t result = task->op.result;

    if (result == -EINTR) {
        queue_op(task, VB_IO_FALLOCATE, task->op.flags);
    } else if (result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV) {
        end_mapped(task);
        not_here(task);
    } else {
        vb_task_finish_mapped(task, result);
    }
}

void vb_task_continue(struct vb_task *task)
{
    switch (task->op.opcode) {
    case VB_IO_READ:
    case VB_IO_WRITE:
        continue_transfer(task);
        break;
    case VB_IO_FSYNC:
        continue_flush(task);
        break;
    case VB_IO_FALLOCATE:
        continue_fallocate(task);
        break;
    case VB_IO_DROP: /* a port's */
        break;
    }
}
