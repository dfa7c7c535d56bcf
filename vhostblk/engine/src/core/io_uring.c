/* SPDX-License-Identifier: Apache-2.0 */
/* `struct vb_io` on io_uring.
 *
 * The ring is set up on the thread that uses it, with SINGLE_ISSUER and DEFER_TASKRUN where the
 * kernel has them (6.1): completions then run when we ask for them instead of interrupting. Only
 * the iothread submits, reaps, and registers files.
 *
 * A registered file saves a look-up of its descriptor for each operation. When its node is closed, the
 * node waits until the kernel has closed the file; else an image would stay open (and its space in use)
 * afterwards. An operation that has completed may still keep the file open: a kernel worker releases it
 * later, by deferred work that runs when we ask for it. So files are registered with tags: the kernel
 * posts a completion with the tag when it has closed the file. Kernels before 6.13 delay that until
 * operations on other files have finished, or for a second: there we use plain descriptors.
 */
#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <limits.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Headers older than the kernel. */
#ifndef IORING_FEAT_RW_ATTR
#define IORING_FEAT_RW_ATTR (1U << 16) /* 6.14 */
#endif

/* Files that a ring keeps; further queues use descriptors. */
#define MAX_FILES 64

struct uring {
    struct vb_io io;
    struct io_uring ring;
    unsigned max_batch;
    struct vb_io_op *backlog; /* the submission queue was full */
    struct vb_io_op **backlog_end;
    uint64_t free_files; /* a bit for each unused place in the kernel's table */
};

static void prepare(struct io_uring_sqe *sqe, struct vb_io_op *op)
{
    unsigned count = op->count < IOV_MAX ? op->count : IOV_MAX;

    switch (op->opcode) {
    case VB_IO_READ:
        if (op->count == 1)
            io_uring_prep_read(sqe, op->fd, op->iovs->iov_base, op->iovs->iov_len, op->offset);
        else
            io_uring_prep_readv(sqe, op->fd, op->iovs, count, op->offset);
        sqe->rw_flags = op->flags;
        break;
    case VB_IO_WRITE:
        if (op->count == 1)
            io_uring_prep_write(sqe, op->fd, op->iovs->iov_base, op->iovs->iov_len, op->offset);
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
    case VB_IO_DROP: /* never submitted */
        break;
    }
    if (op->file >= 0) {
        sqe->fd = op->file;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
    io_uring_sqe_set_data(sqe, op);
}

static void uring_submit(struct vb_io *io)
{
    struct uring *uring = (struct uring *)io;

    while (io->unsubmitted) {
        int done = io_uring_submit(&uring->ring);

        if (done < 0) {
            /* -EAGAIN, -EBUSY: out of memory or completions to reap first; the next turn tries
             * again. What is queued stays queued. */
            return;
        }
        io->unsubmitted -= (unsigned)done;
        if (!done)
            return;
    }
}

static bool push(struct uring *uring, struct vb_io_op *op)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

    if (!sqe) {
        uring_submit(&uring->io);
        sqe = io_uring_get_sqe(&uring->ring);
        if (!sqe)
            return false;
    }
    prepare(sqe, op);
    uring->io.unsubmitted++;
    if (uring->max_batch && uring->io.unsubmitted >= uring->max_batch)
        uring_submit(&uring->io);
    return true;
}

static void uring_queue(struct vb_io *io, struct vb_io_op *op)
{
    struct uring *uring = (struct uring *)io;

    io->in_flight++;
    op->next = NULL;
    if (uring->backlog || !push(uring, op)) {
        *uring->backlog_end = op;
        uring->backlog_end = &op->next;
    }
}

static void push_backlog(struct uring *uring)
{
    while (uring->backlog) {
        struct vb_io_op *op = uring->backlog, *next = op->next;

        if (!push(uring, op))
            return;
        uring->backlog = next;
        if (!next)
            uring->backlog_end = &uring->backlog;
    }
}

/* What the kernel has to tell: work that only runs when asked for, completions that found no room. */
static unsigned kernel_flags(const struct uring *uring)
{
    return __atomic_load_n(uring->ring.sq.kflags, __ATOMIC_RELAXED);
}

static struct vb_io_op *uring_reap(struct vb_io *io)
{
    struct uring *uring = (struct uring *)io;
    struct vb_io_op *done = NULL, **end = &done;
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;

    /* This also runs deferred work of operations that have completed. */
    if (kernel_flags(uring) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
        io_uring_get_events(&uring->ring);
    if (!io->in_flight)
        return NULL;
    io_uring_for_each_cqe(&uring->ring, head, cqe)
    {
        struct vb_io_op *op = io_uring_cqe_get_data(cqe);

        op->result = cqe->res;
        op->next = NULL;
        *end = op;
        end = &op->next;
        count++;
    }
    io_uring_cq_advance(&uring->ring, count);
    io->in_flight -= count;
    if (uring->backlog) {
        push_backlog(uring);
        uring_submit(io);
    }
    return done;
}

static bool work_waits(const struct uring *uring)
{
    return io_uring_cq_ready(&uring->ring) ||
           kernel_flags(uring) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* The ring's own descriptor does not serve: with DEFER_TASKRUN a completion wakes nobody who polls
 * it. An eventfd is signalled, at a cost for each completion, so only while somebody sleeps. */
static bool uring_arm(struct vb_io *io, bool armed)
{
    struct uring *uring = (struct uring *)io;
    eventfd_t ignored;

    if (!armed) {
        eventfd_read(io->poll_fd, &ignored);
        io_uring_cq_eventfd_toggle(&uring->ring, false);
        return false;
    }
    io_uring_cq_eventfd_toggle(&uring->ring, true);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return work_waits(uring);
}

static int uring_keep_file(struct vb_io *io, int fd, struct vb_io_op *drop)
{
    struct uring *uring = (struct uring *)io;
    uint64_t tag = (uintptr_t)drop;
    int file;

    if (!uring->free_files)
        return -1;
    file = __builtin_ctzll(uring->free_files);
    if (io_uring_register_files_update_tag(&uring->ring, file, &fd, (__u64 *)&tag, 1) != 1)
        return -1;
    uring->free_files &= ~(1ull << file);
    return file;
}

static bool uring_drop_file(struct vb_io *io, int file)
{
    struct uring *uring = (struct uring *)io;
    int none = -1;

    if (io_uring_register_files_update(&uring->ring, file, &none, 1) != 1)
        return false;
    uring->free_files |= 1ull << file;
    io->in_flight++;
    return true;
}

static void uring_close(struct vb_io *io)
{
    struct uring *uring = (struct uring *)io;

    io_uring_queue_exit(&uring->ring);
    close(io->poll_fd);
    free(uring);
}

static int open_eventfd(struct uring *uring)
{
    int result;

    uring->io.poll_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (uring->io.poll_fd < 0)
        return -errno;
    result = io_uring_register_eventfd(&uring->ring, uring->io.poll_fd);
    if (result < 0)
        close(uring->io.poll_fd);
    else
        io_uring_cq_eventfd_toggle(&uring->ring, false);
    return result;
}

static const struct vb_io_vtable uring_vtable = {
    uring_queue, uring_submit, uring_keep_file, uring_drop_file, uring_reap, uring_arm, uring_close,
};

struct vb_io *vb_io_open_uring(unsigned entries, unsigned max_batch, int *error)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE,
        .cq_entries = entries * 4,
    };
    struct uring *uring = calloc(1, sizeof(*uring));
    int result;

    if (!uring) {
        *error = ENOMEM;
        return NULL;
    }
    result = io_uring_queue_init_params(entries, &uring->ring, &params);
    if (result == -EINVAL) {
        params = (struct io_uring_params){.flags = IORING_SETUP_CQSIZE, .cq_entries = entries * 4};
        result = io_uring_queue_init_params(entries, &uring->ring, &params);
    }
    if (result < 0) {
        *error = -result;
        free(uring);
        return NULL;
    }
    result = open_eventfd(uring);
    if (result < 0) {
        *error = -result;
        io_uring_queue_exit(&uring->ring);
        free(uring);
        return NULL;
    }
    if (params.features & IORING_FEAT_RW_ATTR &&
        !io_uring_register_files_sparse(&uring->ring, MAX_FILES))
        uring->free_files = UINT64_MAX >> (64 - MAX_FILES);
    uring->io.vtable = &uring_vtable;
    uring->max_batch = max_batch;
    uring->backlog_end = &uring->backlog;
    return &uring->io;
}
