/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File I/O for the Python lane: see vhostblk/block/aio. Nothing is decided here; limits on requests
 * in flight are kept by the caller, who never has more of them than `completions`.
 */
#define _GNU_SOURCE
#include "aio.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/uio.h>

/* Kernel headers older than the kernel. */
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

struct vb_aio {
    struct io_uring ring;
    /* Completion work waits in the kernel until it is asked for. */
    int deferred;
};

int64_t vb_preadv(int fd, uintptr_t iov, unsigned count, int64_t offset, int flags)
{
    ssize_t done = preadv2(fd, (const struct iovec *)iov, (int)count, offset, flags);
    return done < 0 ? -errno : done;
}

int64_t vb_pwritev(int fd, uintptr_t iov, unsigned count, int64_t offset, int flags)
{
    ssize_t done = pwritev2(fd, (const struct iovec *)iov, (int)count, offset, flags);
    return done < 0 ? -errno : done;
}

void vb_pread_segments(int fd, uintptr_t iov, unsigned count, const int64_t *offsets, int flags,
                       int64_t *results)
{
    for (unsigned i = 0; i < count; i++)
        results[i] = vb_preadv(fd, iov + i * sizeof(struct iovec), 1, offsets[i], flags);
}

void vb_seek_data(int fd, unsigned count, const int64_t *offsets, int64_t *results)
{
    for (unsigned i = 0; i < count; i++) {
        off_t found = lseek(fd, offsets[i], SEEK_DATA);
        results[i] = found < 0 ? -errno : found;
    }
}

static int open_ring(struct vb_aio *aio, unsigned entries, unsigned completions, unsigned flags)
{
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_CQSIZE,
        .cq_entries = completions,
    };
    return io_uring_queue_init_params(entries, &aio->ring, &params);
}

struct vb_aio *vb_aio_open(unsigned entries, unsigned completions, int event_fd, int *error)
{
    struct vb_aio *aio = calloc(1, sizeof(*aio));
    if (aio == NULL) {
        *error = ENOMEM;
        return NULL;
    }
    int result = open_ring(aio, entries, completions,
                           IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    aio->deferred = result == 0;
    if (result == -EINVAL) /* before Linux 6.1 */
        result = open_ring(aio, entries, completions, 0);
    if (result < 0) {
        free(aio);
        *error = -result;
        return NULL;
    }
    result = io_uring_register_eventfd(&aio->ring, event_fd);
    if (result < 0) {
        vb_aio_close(aio);
        *error = -result;
        return NULL;
    }
    return aio;
}

void vb_aio_close(struct vb_aio *aio)
{
    io_uring_queue_exit(&aio->ring);
    free(aio);
}

/* What the kernel transfers at most in one call (MAX_RW_COUNT). */
#define MAX_TRANSFER 0x7ffff000u

static unsigned transfer_length(const struct iovec *segment)
{
    return segment->iov_len > MAX_TRANSFER ? MAX_TRANSFER : (unsigned)segment->iov_len;
}

int vb_aio_preadv(struct vb_aio *aio, uint32_t slot, int fd, uintptr_t iov, unsigned count,
                  int64_t offset)
{
    const struct iovec *segments = (const struct iovec *)iov;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
    if (sqe == NULL)
        return -EBUSY;
    if (count == 1) /* saves the kernel copying the list */
        io_uring_prep_read(sqe, fd, segments->iov_base, transfer_length(segments), offset);
    else
        io_uring_prep_readv(sqe, fd, segments, count, offset);
    sqe->user_data = slot;
    return 0;
}

int vb_aio_pwritev(struct vb_aio *aio, uint32_t slot, int fd, uintptr_t iov, unsigned count,
                   int64_t offset)
{
    const struct iovec *segments = (const struct iovec *)iov;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
    if (sqe == NULL)
        return -EBUSY;
    if (count == 1)
        io_uring_prep_write(sqe, fd, segments->iov_base, transfer_length(segments), offset);
    else
        io_uring_prep_writev(sqe, fd, segments, count, offset);
    sqe->user_data = slot;
    return 0;
}

int vb_aio_fdatasync(struct vb_aio *aio, uint32_t slot, int fd)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
    if (sqe == NULL)
        return -EBUSY;
    io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    sqe->user_data = slot;
    return 0;
}

int vb_aio_fallocate(struct vb_aio *aio, uint32_t slot, int fd, int mode, int64_t offset,
                     int64_t length)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
    if (sqe == NULL)
        return -EBUSY;
    io_uring_prep_fallocate(sqe, fd, mode, offset, length);
    sqe->user_data = slot;
    return 0;
}

static int is_passing(int error)
{
    return error == -EAGAIN || error == -EBUSY || error == -EINTR;
}

int vb_aio_submit(struct vb_aio *aio)
{
    /* The caller reaps right after this, so an event would only wake it in vain. */
    io_uring_cq_eventfd_toggle(&aio->ring, false);
    int result;
    do {
        result = io_uring_submit(&aio->ring);
    } while (result == -EINTR);
    io_uring_cq_eventfd_toggle(&aio->ring, true);
    if (result < 0 && !is_passing(result))
        return result;
    return (int)io_uring_sq_ready(&aio->ring);
}

int vb_aio_withdraw(struct vb_aio *aio, uint32_t *slots)
{
    /* The kernel moves the head past an entry when it takes it, and looks at the tail only while
     * it submits, so until then what lies between is ours. */
    struct io_uring_sq *queue = &aio->ring.sq;
    unsigned head = *queue->khead;
    int count = 0;
    for (unsigned at = head; at != queue->sqe_tail; at++)
        slots[count++] = (uint32_t)queue->sqes[at & *queue->kring_mask].user_data;
    queue->sqe_head = head;
    queue->sqe_tail = head;
    *queue->ktail = head;
    return count;
}

int vb_aio_reap(struct vb_aio *aio, struct vb_completion *completions, unsigned limit)
{
    int asked = aio->deferred ? io_uring_get_events(&aio->ring) : 0;
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&aio->ring, head, cqe) {
        if (count == limit)
            break;
        completions[count].slot = (uint32_t)cqe->user_data;
        completions[count].result = cqe->res;
        count++;
    }
    io_uring_cq_advance(&aio->ring, count);
    if (count == 0 && asked < 0 && !is_passing(asked))
        return asked;
    return (int)count;
}
