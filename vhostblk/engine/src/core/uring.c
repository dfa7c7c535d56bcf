/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "uring.h"

#include <limits.h>

/* Headers older than the kernel. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

/* What the kernel transfers at most in one call (MAX_RW_COUNT). */
#define MAX_TRANSFER 0x7ffff000u

int vb_uring_open(struct io_uring *ring, unsigned entries, unsigned completions, bool *deferred)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE,
        .cq_entries = completions,
    };
    int result = io_uring_queue_init_params(entries, ring, &params);

    *deferred = result == 0;
    if (result == -EINVAL) {
        params = (struct io_uring_params){.flags = IORING_SETUP_CQSIZE, .cq_entries = completions};
        result = io_uring_queue_init_params(entries, ring, &params);
    }
    return result;
}

static unsigned transfer_length(const struct iovec *segment)
{
    return segment->iov_len > MAX_TRANSFER ? MAX_TRANSFER : (unsigned)segment->iov_len;
}

void vb_uring_prepare(struct io_uring_sqe *sqe, const struct vb_io_op *op)
{
    unsigned count = op->count < IOV_MAX ? op->count : IOV_MAX;
    const struct iovec *first = op->iovs;

    switch (op->opcode) {
    case VB_IO_READ:
        if (count == 1) /* saves the kernel copying the list */
            io_uring_prep_read(sqe, op->fd, first->iov_base, transfer_length(first), op->offset);
        else
            io_uring_prep_readv(sqe, op->fd, op->iovs, count, op->offset);
        sqe->rw_flags = op->flags;
        break;
    case VB_IO_WRITE:
        if (count == 1)
            io_uring_prep_write(sqe, op->fd, first->iov_base, transfer_length(first), op->offset);
        else
            io_uring_prep_writev(sqe, op->fd, op->iovs, count, op->offset);
        sqe->rw_flags = op->flags;
        break;
    case VB_IO_FSYNC:
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        break;
    case VB_IO_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, op->flags, op->offset, op->length);
        break;
    case VB_IO_DROP:
        break;
    }
}

void vb_uring_withdraw(struct io_uring *ring, void (*took)(void *context, uint64_t data),
                       void *context)
{
    /* The kernel moves the head past an entry when it takes it, and looks at the tail only while
     * it submits, so until then what lies between is ours. */
    struct io_uring_sq *queue = &ring->sq;
    unsigned head = *queue->khead, tail = queue->sqe_tail;

    queue->sqe_head = head;
    queue->sqe_tail = head;
    *queue->ktail = head;
    for (unsigned at = head; at != tail; at++)
        took(context, queue->sqes[at & *queue->kring_mask].user_data);
}
