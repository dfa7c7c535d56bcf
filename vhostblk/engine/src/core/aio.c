/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File I/O for the Python lane: see vhostblk/block/aio. Nothing is decided here; limits on requests
 * in flight are kept by the caller, who never has more of them than `completions`.
 */
#define _GNU_SOURCE
#include "aio.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "uring.h"

struct vb_aio {
    struct io_uring ring;
    bool deferred;
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

struct vb_aio *vb_aio_open(unsigned entries, unsigned completions, int event_fd, int *error)
{
    struct vb_aio *aio = calloc(1, sizeof(*aio));
    if (aio == NULL) {
        *error = ENOMEM;
        return NULL;
    }
    int result = vb_uring_open(&aio->ring, entries, completions, &aio->deferred);
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

static int queue(struct vb_aio *aio, uint32_t slot, const struct vb_io_op *op)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
    if (sqe == NULL)
        return -EBUSY;
    vb_uring_prepare(sqe, op);
    sqe->user_data = slot;
    return 0;
}

int vb_aio_preadv(struct vb_aio *aio, uint32_t slot, int fd, uintptr_t iov, unsigned count,
                  int64_t offset)
{
    struct vb_io_op op = {
        .opcode = VB_IO_READ,
        .fd = fd,
        .iovs = (const struct iovec *)iov,
        .count = count,
        .offset = (uint64_t)offset,
    };
    return queue(aio, slot, &op);
}

int vb_aio_pwritev(struct vb_aio *aio, uint32_t slot, int fd, uintptr_t iov, unsigned count,
                   int64_t offset)
{
    struct vb_io_op op = {
        .opcode = VB_IO_WRITE,
        .fd = fd,
        .iovs = (const struct iovec *)iov,
        .count = count,
        .offset = (uint64_t)offset,
    };
    return queue(aio, slot, &op);
}

int vb_aio_fdatasync(struct vb_aio *aio, uint32_t slot, int fd)
{
    struct vb_io_op op = {.opcode = VB_IO_FSYNC, .fd = fd};
    return queue(aio, slot, &op);
}

int vb_aio_fallocate(struct vb_aio *aio, uint32_t slot, int fd, int mode, int64_t offset,
                     int64_t length)
{
    struct vb_io_op op = {
        .opcode = VB_IO_FALLOCATE,
        .fd = fd,
        .flags = mode,
        .offset = (uint64_t)offset,
        .length = (uint64_t)length,
    };
    return queue(aio, slot, &op);
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
    if (result < 0 && !vb_uring_passing(result))
        return result;
    return (int)io_uring_sq_ready(&aio->ring);
}

struct withdrawn {
    uint32_t *slots;
    int count;
};

static void note_slot(void *context, uint64_t data)
{
    struct withdrawn *withdrawn = context;
    withdrawn->slots[withdrawn->count++] = (uint32_t)data;
}

int vb_aio_withdraw(struct vb_aio *aio, uint32_t *slots)
{
    struct withdrawn withdrawn = {slots, 0};
    vb_uring_withdraw(&aio->ring, note_slot, &withdrawn);
    return withdrawn.count;
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
    if (count == 0 && asked < 0 && !vb_uring_passing(asked))
        return asked;
    return (int)count;
}
