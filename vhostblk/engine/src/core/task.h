/* SPDX-License-Identifier: Apache-2.0 */
/* One I/O of a port: a range of the disk, and memory. It knows neither the protocol that it comes from
 * nor how its requester is answered.
 */
#ifndef VHOSTBLK_TASK_H
#define VHOSTBLK_TASK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "extent.h"
#include "io.h"

#include "task.cdef.h"

struct vb_port;

/* A task is free, with the engine (waiting for its turn, or its operation is in flight), or up (with
 * Python). */
enum vb_task_state { VB_TASK_FREE, VB_TASK_STARTED, VB_TASK_UP };

struct vb_task {
    struct vb_port *port;
    /* The task has ended: with 0 and the bytes put into its segments, or an errno. */
    void (*done)(struct vb_task *task, int error, uint64_t bytes);
    uint64_t offset; /* of the disk, in bytes; of the port's own kinds whatever they have */
    uint64_t length;
    struct iovec *iovs; /* the segments; as they were when the task has ended */
    uint32_t iov_count;
    uint16_t kind;
    uint16_t tag; /* the port's */
    uint8_t flags;
    uint8_t state;
    uint8_t phase; /* of the port when it began to go by the map */
    bool syncing;  /* has the turn to sync the map's file */
    struct vb_extent_map *map; /* that it goes by */
    struct vb_task *next;      /* in a run, among those that are up, or that have more pieces */
    uint64_t begun;
    uint64_t transferred;
    uint64_t end;  /* of the piece in progress; the length, if it is the last one: `pieces.c` */
    uint64_t cut;  /* bytes transferred of the segment that the operation begins in */
    uint64_t trim; /* bytes behind the piece of the segment that it ends in */
    bool zeroing;  /* what is left of a read is zeroes */
    int64_t sync_error; /* of a write with RWF_DSYNC, which is repeated without it */
    struct vb_io_op op;
};

static inline bool vb_task_writes(const struct vb_task *task)
{
    return task->kind == VB_TASK_WRITE;
}

/* Start a task: by the port's map, or it goes up. It may have ended on return. Its port has set what
 * comes before `phase`, and zeroed the rest when the task was new. */
void vb_task_start(struct vb_task *task);

/* Go on with a task whose operation has ended. */
void vb_task_continue(struct vb_task *task);

/* Have Python serve a task: `upcall.c`. */
void vb_task_go_up(struct vb_task *task);

#endif
