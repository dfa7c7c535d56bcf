/* SPDX-License-Identifier: Apache-2.0 */
/* Long transfers, in pieces.
 *
 * A guest may ask for as much as its disk has, into one buffer that it names a thousand times. What the
 * iothread copies by its own hand (zeroes, attempts at once, and io_uring's submission of reads that
 * the page cache has) is done in small pieces, over as many turns as it takes; so others get theirs
 * in between. What a disk transfers by itself has longer pieces, which follow each other at once.
 */
#include "pieces.h"

#include <string.h>

#include "execute.h"
#include "iothread.h"
#include "port.h"

/* A piece that the disk transfers: its pages are pinned in one go. */
#ifndef VB_MAX_DIRECT_BYTES
#define VB_MAX_DIRECT_BYTES (4 << 20)
#endif

/* What a port may do in one turn: about a millisecond's work. */
#define TURN_REQUESTS 256
#define TURN_BYTES (4 * VB_MAX_INLINE_BYTES)
#define TURN_NS 1000000

void vb_port_begin_turn(struct vb_port *port)
{
    port->turn = (struct vb_turn){.requests = TURN_REQUESTS, .bytes = TURN_BYTES};
}

bool vb_port_has_time(struct vb_port *port)
{
    uint64_t now = vb_now();

    if (!port->turn.ends)
        port->turn.ends = now + TURN_NS;
    return now < port->turn.ends;
}

static uint64_t piece_limit(const struct vb_task *task)
{
    return task->map->flags & VB_EXTENT_BUFFERED ? VB_MAX_INLINE_BYTES : VB_MAX_DIRECT_BYTES;
}

/* Let the operation cover no more than a piece of what is left. */
static void cut_piece(struct vb_task *task, uint64_t limit)
{
    struct vb_io_op *op = &task->op;
    uint64_t left = task->length - task->transferred, bytes = 0;
    uint32_t count = 0;

    if (left < limit)
        limit = left;
    while (bytes < limit)
        bytes += op->iovs[count++].iov_len;
    op->count = count;
    task->end = task->transferred + limit;
    task->trim = bytes - limit;
    if (task->trim)
        task->iovs[op->iovs - task->iovs + count - 1].iov_len -= task->trim;
}

/* Let the operation cover all that is left. */
static void join_pieces(struct vb_task *task)
{
    struct vb_io_op *op = &task->op;
    uint32_t first = (uint32_t)(op->iovs - task->iovs);

    if (task->trim)
        task->iovs[first + op->count - 1].iov_len += task->trim;
    task->trim = 0;
    task->end = task->length;
    op->count = task->iov_count - first;
}

/* Have the next piece done in a turn of the port. */
static void wait_for_turn(struct vb_task *task)
{
    struct vb_port *port = task->port;

    if (!port->pieces)
        port->pieces_end = &port->pieces;
    task->next = NULL;
    *port->pieces_end = task;
    port->pieces_end = &task->next;
}

void vb_pieces_begin(struct vb_task *task)
{
    cut_piece(task, piece_limit(task));
    if (task->zeroing || task->map->flags & VB_EXTENT_BUFFERED)
        wait_for_turn(task);
    else
        vb_task_queue_transfer(task);
}

void vb_pieces_next(struct vb_task *task, uint64_t bytes)
{
    join_pieces(task);
    vb_task_skip(task, bytes);
    if (task->transferred == task->length)
        vb_task_finish_mapped(task, 0);
    else
        vb_pieces_begin(task);
}

void vb_pieces_zero(struct vb_task *task)
{
    join_pieces(task);
    task->zeroing = true;
    cut_piece(task, VB_MAX_INLINE_BYTES);
    if (task->end < task->length) {
        wait_for_turn(task);
        return;
    }
    vb_zero_segments(task->op.iovs, task->op.count);
    vb_task_finish_mapped(task, 0);
}

static void do_piece(struct vb_task *task)
{
    uint64_t bytes = task->end - task->transferred;

    task->port->turn.bytes -= (int64_t)bytes;
    if (task->zeroing) {
        vb_zero_segments(task->op.iovs, task->op.count);
        vb_pieces_next(task, bytes);
    } else if (vb_run_takes(task)) {
        vb_run_transfer(task);
    } else {
        vb_task_queue_transfer(task);
    }
}

bool vb_pieces_do(struct vb_port *port)
{
    struct vb_task *task = port->pieces;

    if (!task)
        return false;
    /* One piece of each, at most: new ones wait behind. */
    port->pieces = NULL;
    while (task && port->turn.bytes > 0 && vb_port_has_time(port)) {
        struct vb_task *next = task->next;

        do_piece(task);
        task = next;
    }
    if (task) { /* those that had no turn are the first in the next one */
        struct vb_task *last = task;

        while (last->next)
            last = last->next;
        last->next = port->pieces;
        if (!port->pieces)
            port->pieces_end = &last->next;
        port->pieces = task;
    }
    return true;
}
