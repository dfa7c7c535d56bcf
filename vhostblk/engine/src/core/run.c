/* SPDX-License-Identifier: Apache-2.0 */
/* Attempts at once, and runs.
 *
 * A read is attempted with RWF_NOWAIT and goes to io_uring where it would block. Few file systems take
 * RWF_NOWAIT for buffered writes, so a write is simply done; where one turns out to be slow (the
 * kernel throttles writers when too much is dirty), writes go to io_uring for a while, so that one
 * busy disk does not hold up the other ports.
 *
 * Tasks of one sweep that follow each other in the file are attempted together, as a run: that saves
 * system calls where a guest reads or writes sequentially in small pieces. Where a run does not
 * succeed as a whole, each of its tasks goes its own way as if there had been none.
 */
#define _GNU_SOURCE
#include "run.h"

#include <limits.h>
#include <string.h>

#include "execute.h"
#include "iothread.h"
#include "pieces.h"
#include "port.h"

/* A write that took longer than this was throttled; try no others for a while. */
#define SLOW_WRITE_NS 2000000
#define SLOW_PENALTY_NS 100000000

bool vb_run_takes(const struct vb_task *task)
{
    const struct vb_port *port = task->port;

    if (!(task->map->flags & VB_EXTENT_BUFFERED))
        return false;
    return !vb_task_writes(task) ||
           (!(task->flags & VB_TASK_FUA) && port->iothread->now >= port->slow_until);
}

/* Transfer at once what can be; bytes, or -1. Of an error, the same done asynchronously tells. */
static ssize_t attempt(struct vb_port *port, const struct vb_task *task, const struct iovec *iovs,
                       uint32_t count)
{
    const struct vb_extent_map *map = task->map;
    int limit = count < IOV_MAX ? (int)count : IOV_MAX;
    uint64_t before;
    ssize_t result;

    /* tmpfs does not know RWF_NOWAIT, and does not need it. */
    if (!vb_task_writes(task))
        return preadv2(map->fd, iovs, limit, task->op.offset,
                       map->flags & VB_EXTENT_IN_MEMORY ? 0 : RWF_NOWAIT);
    before = vb_now();
    result = pwritev(map->fd, iovs, limit, task->op.offset);
    if (vb_now() - before > SLOW_WRITE_NS) {
        port->slow_until = before + SLOW_PENALTY_NS;
        port->turn.bytes = 0; /* others have waited long enough */
    }
    return result;
}

void vb_run_transfer(struct vb_task *task)
{
    ssize_t result = attempt(task->port, task, task->op.iovs, task->op.count);

    if (result >= 0 && task->transferred + (uint64_t)result == task->end) {
        if (task->end == task->length)
            vb_task_finish_mapped(task, 0);
        else
            vb_pieces_next(task, (uint64_t)result);
        return;
    }
    if (result > 0)
        vb_task_skip(task, vb_task_whole_blocks(task, result));
    vb_task_queue_transfer(task);
}

/* Put a task behind the run, if it goes on there. */
static bool join(struct vb_run *run, struct vb_task *task)
{
    const struct vb_task *last = run->last;

    if (!run->count || last->kind != task->kind || last->map != task->map ||
        run->end != task->op.offset || run->bytes + task->length > VB_MAX_INLINE_BYTES ||
        run->iov_count + task->op.count > VB_RUN_IOVS)
        return false;
    if (run->count == 1)
        memcpy(run->iovs, run->first->op.iovs, run->iov_count * sizeof(*run->iovs));
    memcpy(run->iovs + run->iov_count, task->op.iovs, task->op.count * sizeof(*run->iovs));
    run->last->next = task;
    return true;
}

void vb_run_add(struct vb_port *port, struct vb_task *task)
{
    struct vb_run *run = &port->run;

    task->next = NULL;
    if (!join(run, task)) {
        vb_run_finish(port);
        run->first = task;
    }
    run->last = task;
    run->end = task->op.offset + task->length;
    run->bytes += task->length;
    port->turn.bytes -= (int64_t)task->length;
    run->iov_count += task->op.count;
    run->count++;
}

void vb_run_finish(struct vb_port *port)
{
    struct vb_run *run = &port->run;
    struct vb_task *task = run->first;
    bool together = false;

    if (!run->count)
        return;
    if (run->count > 1) {
        ssize_t result = attempt(port, task, run->iovs, run->iov_count);

        together = result >= 0 && (uint64_t)result == run->bytes;
        if (together)
            port->stats.merged[task->kind] += run->count - 1;
    }
    run->first = run->last = NULL;
    run->count = run->iov_count = 0;
    run->bytes = 0;
    while (task) {
        struct vb_task *next = task->next;

        if (together)
            vb_task_finish_mapped(task, 0);
        else
            vb_run_transfer(task);
        task = next;
    }
}
