/* SPDX-License-Identifier: Apache-2.0 */
/* Observing the engine's stores one by one. The engine is compiled for ThreadSanitizer, whose hooks
 * before each access are implemented here: before a store into a watched area, a picture of all areas
 * is taken. A page that is marked in a dirty log is copied at once, as the fastest front-end may do.
 *
 * `stores_turn` replaces the iothread, and runs one turn of it; file I/O is done when it is reaped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/iothread.h"
#include "virtqueue/queue.h"

#define MAX_AREAS 8
#define PAGE 4096

struct area {
    uint8_t *start;
    size_t length;
};

static struct area areas[MAX_AREAS];
static unsigned area_count;
static size_t picture_bytes;
static uint8_t *pictures;
static size_t taken, room;

/* Guest memory, and the front-end's copy of it. */
struct copied {
    uint64_t guest_addr, size, host, copy;
};

static struct copied regions[MAX_AREAS];
static unsigned region_count;
static struct area log_area;

void stores_forget(void)
{
    area_count = region_count = 0;
    picture_bytes = taken = 0;
    log_area = (struct area){0};
}

void stores_watch(uint64_t start, uint64_t length)
{
    areas[area_count++] = (struct area){(uint8_t *)(uintptr_t)start, length};
    picture_bytes += length;
    taken = room = 0;
}

uint64_t stores_taken(void)
{
    return taken;
}

/* Return the pictures taken up to now, each as long as all areas, and forget them. */
const uint8_t *stores_pictures(void)
{
    taken = 0;
    return pictures;
}

void stores_copy_region(uint64_t guest_addr, uint64_t size, uint64_t host, uint64_t copy)
{
    regions[region_count++] = (struct copied){guest_addr, size, host, copy};
}

void stores_follow_log(uint64_t bits, uint64_t size)
{
    log_area = (struct area){(uint8_t *)(uintptr_t)bits, size};
}

static void take_picture(void)
{
    uint8_t *at;

    if (taken == room) {
        room = room ? 2 * room : 64;
        pictures = realloc(pictures, room * picture_bytes);
    }
    at = pictures + taken++ * picture_bytes;
    for (unsigned i = 0; i < area_count; i++) {
        memcpy(at, areas[i].start, areas[i].length);
        at += areas[i].length;
    }
}

static void about_to_store(const volatile void *address)
{
    for (unsigned i = 0; i < area_count; i++)
        if ((uintptr_t)address - (uintptr_t)areas[i].start < areas[i].length) {
            take_picture();
            return;
        }
}

static void copy_page(uint64_t addr)
{
    for (unsigned i = 0; i < region_count; i++) {
        const struct copied *region = &regions[i];
        uint64_t offset = addr - region->guest_addr;

        if (offset < region->size)
            memcpy((void *)(uintptr_t)(region->copy + offset),
                   (void *)(uintptr_t)(region->host + offset), PAGE);
    }
}

/* Called when bits of the log were set; they may have been set before. */
static void noted(const volatile uint8_t *byte, uint8_t bits)
{
    uintptr_t place = (uintptr_t)byte - (uintptr_t)log_area.start;

    if (place >= log_area.length)
        return;
    for (unsigned bit = 0; bit < 8; bit++)
        if (bits >> bit & 1)
            copy_page((8 * (uint64_t)place + bit) * PAGE);
}

/* The functions that the compiler calls. */

void __tsan_init(void)
{
}

void __tsan_func_entry(void *caller)
{
}

void __tsan_func_exit(void)
{
}

void __tsan_read_range(void *address, unsigned long size)
{
}

void __tsan_write_range(void *address, unsigned long size)
{
    about_to_store(address);
}

void __tsan_atomic_thread_fence(int order)
{
}

void __tsan_atomic_signal_fence(int order)
{
}

#define ACCESSES(bytes)                                                                            \
    void __tsan_read##bytes(void *address)                                                         \
    {                                                                                              \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *address)                                               \
    {                                                                                              \
    }                                                                                              \
    void __tsan_write##bytes(void *address)                                                        \
    {                                                                                              \
        about_to_store(address);                                                                   \
    }                                                                                              \
    void __tsan_unaligned_write##bytes(void *address)                                              \
    {                                                                                              \
        about_to_store(address);                                                                   \
    }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

#define ATOMICS(bits, type)                                                                        \
    type __tsan_atomic##bits##_load(const volatile type *address, int order)                       \
    {                                                                                              \
        return *address;                                                                           \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile type *address, type value, int order)                \
    {                                                                                              \
        about_to_store(address);                                                                   \
        *address = value;                                                                          \
    }                                                                                              \
    type __tsan_atomic##bits##_exchange(volatile type *address, type value, int order)             \
    {                                                                                              \
        type former = *address;                                                                    \
                                                                                                   \
        about_to_store(address);                                                                   \
        *address = value;                                                                          \
        return former;                                                                             \
    }                                                                                              \
    type __tsan_atomic##bits##_fetch_add(volatile type *address, type value, int order)            \
    {                                                                                              \
        return __tsan_atomic##bits##_exchange(address, *address + value, order);                   \
    }                                                                                              \
    type __tsan_atomic##bits##_fetch_sub(volatile type *address, type value, int order)            \
    {                                                                                              \
        return __tsan_atomic##bits##_exchange(address, *address - value, order);                   \
    }                                                                                              \
    type __tsan_atomic##bits##_fetch_and(volatile type *address, type value, int order)            \
    {                                                                                              \
        return __tsan_atomic##bits##_exchange(address, *address & value, order);                   \
    }                                                                                              \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type *address, type *expected,      \
                                                      type value, int order, int failed)           \
    {                                                                                              \
        type former = *address;                                                                    \
                                                                                                   \
        if (former == *expected) {                                                                 \
            __tsan_atomic##bits##_exchange(address, value, order);                                 \
            return 1;                                                                              \
        }                                                                                          \
        *expected = former;                                                                        \
        return 0;                                                                                  \
    }

ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

uint8_t __tsan_atomic8_fetch_or(volatile uint8_t *address, uint8_t value, int order)
{
    uint8_t former = __tsan_atomic8_exchange(address, *address | value, order);

    noted(address, value);
    return former;
}

uint32_t __tsan_atomic32_fetch_or(volatile uint32_t *address, uint32_t value, int order)
{
    return __tsan_atomic32_exchange(address, *address | value, order);
}

/* The replacement of the iothread. */

static struct vb_io_op *queued;

static void queue_op(struct vb_io *io, struct vb_io_op *op)
{
    op->next = queued;
    queued = op;
}

static void submit(struct vb_io *io)
{
}

static int keep_file(struct vb_io *io, int fd, struct vb_io_op *drop)
{
    return -1;
}

static bool drop_file(struct vb_io *io, int file)
{
    return false;
}

static int64_t perform(const struct vb_io_op *op)
{
    int64_t done;

    switch (op->opcode) {
    case VB_IO_READ:
        done = preadv(op->fd, op->iovs, (int)op->count, (off_t)op->offset);
        break;
    case VB_IO_WRITE:
        done = pwritev(op->fd, op->iovs, (int)op->count, (off_t)op->offset);
        break;
    case VB_IO_FSYNC:
        done = fdatasync(op->fd);
        break;
    default:
        done = fallocate(op->fd, op->flags, (off_t)op->offset, (off_t)op->length);
    }
    return done < 0 ? -errno : done;
}

static struct vb_io_op *reap(struct vb_io *io)
{
    struct vb_io_op *done = queued;

    queued = NULL;
    for (struct vb_io_op *op = done; op; op = op->next)
        op->result = perform(op);
    return done;
}

static const struct vb_io_vtable vtable = {queue_op, submit, keep_file, drop_file, reap, NULL, NULL};
static struct vb_io io = {.vtable = &vtable};
static struct vb_iothread iothread;

void vb_iothread_wake(struct vb_iothread *thread)
{
}

void vb_iothread_signal(struct vb_iothread *thread)
{
}

void vb_iothread_notify(struct vb_iothread *thread, int fd)
{
    eventfd_write(fd, 1);
}

void vb_notify_clear(int fd)
{
}

struct vb_iothread *stores_iothread(void)
{
    iothread.io = &io;
    iothread.upcall_fd = -1;
    if (!iothread.fetched_end)
        iothread.fetched_end = &iothread.fetched;
    return &iothread;
}

static void publish(struct vb_port *port)
{
    port->vtable->publish(port);
    vb_port_show(port);
}

/* Sweep, publish, do file I/O and publish, until there is no more work. */
void stores_turn(void)
{
    bool progress;

    iothread.now = vb_now();
    do {
        struct vb_io_op *op;

        progress = false;
        for (struct vb_port *port = iothread.ports; port; port = port->next) {
            progress |= vb_port_turn(port);
            publish(port);
        }
        op = reap(&io);
        while (op) {
            struct vb_io_op *next = op->next;

            vb_task_continue((struct vb_task *)((char *)op - offsetof(struct vb_task, op)));
            progress = true;
            op = next;
        }
        for (struct vb_port *port = iothread.ports; port; port = port->next)
            publish(port);
    } while (progress);
}

/* Ask for kicks. */
void stores_arm(void)
{
    for (struct vb_port *port = iothread.ports; port; port = port->next)
        vb_port_arm(port);
}
