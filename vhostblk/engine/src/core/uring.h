/* SPDX-License-Identifier: Apache-2.0 */
/* What all users of io_uring do alike. */
#ifndef VHOSTBLK_URING_H
#define VHOSTBLK_URING_H

#include <errno.h>
#include <liburing.h>
#include <stdbool.h>

#include "io.h"

/* Set a ring up, to be used by the calling thread alone; 0 or -errno. Where the kernel can (6.1), the
 * completion work waits until it is asked for: *deferred. */
int vb_uring_open(struct io_uring *ring, unsigned entries, unsigned completions, bool *deferred);

/* Describe an operation on its descriptor to the kernel; not a VB_IO_DROP. */
void vb_uring_prepare(struct io_uring_sqe *sqe, const struct vb_io_op *op);

/* Take back the entries that have not been submitted, the oldest first: call `took` with the user data of
 * each. */
void vb_uring_withdraw(struct io_uring *ring, void (*took)(void *context, uint64_t data),
                       void *context);

/* Whether it is of use to try again after an error: out of memory, or completions to reap first. */
static inline bool vb_uring_passing(int error)
{
    return error == -EAGAIN || error == -EBUSY || error == -EINTR;
}

#endif
