/* SPDX-License-Identifier: Apache-2.0 */
/* Reads, or writes, of one sweep that follow each other in the file: one system call does them all.
 * The segments of a single task stay where they are.
 */
#ifndef VHOSTBLK_RUN_H
#define VHOSTBLK_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct vb_port;
struct vb_task;

/* Most segments of a run. */
#define VB_RUN_IOVS 128

/* Longest transfer that is attempted at once, so that other ports get their turn. */
#ifndef VB_MAX_INLINE_BYTES /* fuzzers have shorter ones */
#define VB_MAX_INLINE_BYTES (256 << 10)
#endif

struct vb_run {
    struct vb_task *first, *last;
    uint64_t end; /* file offset */
    uint64_t bytes;
    uint32_t count;
    uint32_t iov_count;
    struct iovec iovs[VB_RUN_IOVS];
};

/* Whether an attempt at once may pay for a task that goes by the map. */
bool vb_run_takes(const struct vb_task *task);

/* Transfer at once what can be, and queue the rest. */
void vb_run_transfer(struct vb_task *task);

/* Put a task off in the hope of more that belongs to it. */
void vb_run_add(struct vb_port *port, struct vb_task *task);

/* Do what was put off; ends a sweep. */
void vb_run_finish(struct vb_port *port);

#endif
