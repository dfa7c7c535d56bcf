/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of a task's execution, between `execute.c` and `run.c`. */
#ifndef VHOSTBLK_EXECUTE_H
#define VHOSTBLK_EXECUTE_H

#include "task.h"

/* End a task that went by the map, with a negative errno, or not. */
void vb_task_finish_mapped(struct vb_task *task, int64_t result);

/* Queue the operation for what a read or a write still has to transfer. */
void vb_task_queue_transfer(struct vb_task *task);

/* Go on with a read or a write whose operation has transferred `bytes`, at least 0. */
void vb_task_transferred(struct vb_task *task, int64_t bytes);

void vb_zero_segments(const struct iovec *iovs, uint32_t count);

/* Skip `bytes` of what the operation still has to transfer. */
void vb_task_skip(struct vb_task *task, uint64_t bytes);

/* Undo the change of the segment that the operation begins in. */
static inline void vb_task_restore(struct vb_task *task)
{
    if (__builtin_expect(task->cut, 0)) {
        struct iovec *iov = task->iovs + (task->op.iovs - task->iovs);

        iov->iov_base = (char *)iov->iov_base - task->cut;
        iov->iov_len += task->cut;
        task->cut = 0;
    }
}

/* The part of what was transferred after which the rest is still aligned. */
static inline int64_t vb_task_whole_blocks(const struct vb_task *task, int64_t bytes)
{
    return bytes & -(int64_t)(task->map->alignment ? task->map->alignment : 1);
}

#endif
