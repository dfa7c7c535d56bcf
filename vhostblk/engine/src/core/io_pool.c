/* SPDX-License-Identifier: Apache-2.0 */
/* `struct vb_io` on a pool of threads, for systems that forbid io_uring. */
#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

struct op_list {
    struct vb_io_op *first;
    struct vb_io_op **end;
};

struct pool {
    struct vb_io io;
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct op_list queued; /* not yet submitted; the iothread's own */
    unsigned queued_count;
    struct op_list waiting; /* under the lock */
    struct op_list done;    /* under the lock */
    bool closing;
    unsigned threads;
    pthread_t thread[];
};

static void list_reset(struct op_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

static void list_append(struct op_list *list, struct vb_io_op *op)
{
    op->next = NULL;
    *list->end = op;
    list->end = &op->next;
}

static int64_t perform(const struct vb_io_op *op)
{
    int count = op->count < IOV_MAX ? (int)op->count : IOV_MAX;
    ssize_t result;

    do {
        switch (op->opcode) {
        case VB_IO_READ:
            result = preadv2(op->fd, op->iovs, count, op->offset, op->flags);
            break;
        case VB_IO_WRITE:
            result = pwritev2(op->fd, op->iovs, count, op->offset, op->flags);
            break;
        case VB_IO_FSYNC:
            result = fdatasync(op->fd);
            break;
        default:
            result = fallocate(op->fd, op->flags, op->offset, op->length);
            break;
        }
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

static void *work(void *argument)
{
    struct pool *pool = argument;

    prctl(PR_SET_NAME, "worker");
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct vb_io_op *op = pool->waiting.first;

        if (!op) {
            if (pool->closing)
                break;
            pthread_cond_wait(&pool->work, &pool->lock);
            continue;
        }
        pool->waiting.first = op->next;
        if (!op->next)
            list_reset(&pool->waiting);
        pthread_mutex_unlock(&pool->lock);
        op->result = perform(op);
        pthread_mutex_lock(&pool->lock);
        if (!pool->done.first)
            eventfd_write(pool->io.poll_fd, 1);
        list_append(&pool->done, op);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void pool_queue(struct vb_io *io, struct vb_io_op *op)
{
    struct pool *pool = (struct pool *)io;

    list_append(&pool->queued, op);
    pool->queued_count++;
    io->in_flight++;
}

static void pool_submit(struct vb_io *io)
{
    struct pool *pool = (struct pool *)io;

    if (!pool->queued_count)
        return;
    pthread_mutex_lock(&pool->lock);
    *pool->waiting.end = pool->queued.first;
    pool->waiting.end = pool->queued.end;
    if (pool->queued_count == 1)
        pthread_cond_signal(&pool->work);
    else
        pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    list_reset(&pool->queued);
    pool->queued_count = 0;
}

static struct vb_io_op *pool_reap(struct vb_io *io)
{
    struct pool *pool = (struct pool *)io;
    struct vb_io_op *done;
    eventfd_t ignored;

    if (!io->in_flight)
        return NULL;
    pthread_mutex_lock(&pool->lock);
    done = pool->done.first;
    list_reset(&pool->done);
    if (done)
        eventfd_read(io->poll_fd, &ignored);
    pthread_mutex_unlock(&pool->lock);
    for (struct vb_io_op *op = done; op; op = op->next)
        io->in_flight--;
    return done;
}

static int pool_keep_file(struct vb_io *io, int fd, struct vb_io_op *drop)
{
    return -1;
}

static bool pool_drop_file(struct vb_io *io, int file)
{
    return false;
}

static bool pool_arm(struct vb_io *io, bool armed)
{
    return false; /* always armed: poll_fd stays readable until all has been reaped */
}

static void pool_close(struct vb_io *io)
{
    struct pool *pool = (struct pool *)io;

    pthread_mutex_lock(&pool->lock);
    pool->closing = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->threads; i++)
        pthread_join(pool->thread[i], NULL);
    close(io->poll_fd);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static const struct vb_io_vtable pool_vtable = {
    pool_queue, pool_submit, pool_keep_file, pool_drop_file, pool_reap, pool_arm, pool_close,
};

struct vb_io *vb_io_open_pool(unsigned threads, int *error)
{
    struct pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pthread_t));

    if (!pool) {
        *error = ENOMEM;
        return NULL;
    }
    pool->io.vtable = &pool_vtable;
    pool->io.poll_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (pool->io.poll_fd < 0) {
        *error = errno;
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    list_reset(&pool->queued);
    list_reset(&pool->waiting);
    list_reset(&pool->done);
    for (; pool->threads < threads; pool->threads++) {
        *error = pthread_create(&pool->thread[pool->threads], NULL, work, pool);
        if (*error) {
            pool_close(&pool->io);
            return NULL;
        }
    }
    return &pool->io;
}
