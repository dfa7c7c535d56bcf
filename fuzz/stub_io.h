/* SPDX-License-Identifier: Apache-2.0 */
/* File I/O whose results the fuzzer's input decides: all of it, a part, nothing, an error. It touches
 * the memory that the operation names and checks that the operation lies within the file.
 */
#ifndef VHOSTBLK_FUZZ_STUB_IO_H
#define VHOSTBLK_FUZZ_STUB_IO_H

#include <errno.h>
#include <limits.h>

#include "guest.h"
#include "core/io.h"

#define FILE_FD 100 /* and up, another one for each map */
#define KEPT_FILES 2

struct stub_io {
    struct vb_io io;
    struct input *input;
    struct vb_io_op *waiting[256];
    unsigned count;
    uint64_t file_begin, file_end; /* of the map in use */
    uint64_t alignment;
    int fd;               /* of the map in use */
    int kept[KEPT_FILES]; /* descriptors; 0: free */
    struct vb_io_op *drops[KEPT_FILES];
    bool benign; /* everything succeeds */
};

static struct stub_io stub;

/* Transfer up to `limit` bytes; returns how many. */
static uint64_t touch(const struct iovec *iovs, int count, uint64_t limit, bool write)
{
    static uint8_t sink[MAX_REGION_BYTES];
    uint64_t done = 0;

    for (int i = 0; i < count && done < limit; i++) {
        uint64_t length = iovs[i].iov_len < limit - done ? iovs[i].iov_len : limit - done;

        CHECK(length <= sizeof(sink));
        if (write)
            memcpy(sink, iovs[i].iov_base, length);
        else
            memset(iovs[i].iov_base, 0xA5, length);
        done += length;
    }
    return done;
}

static int64_t transfer(const struct iovec *iovs, uint32_t count, uint64_t offset, bool write)
{
    uint64_t total = 0;
    uint8_t outcome = stub.benign ? 0 : take_u8(stub.input);

    if (count > IOV_MAX)
        count = IOV_MAX;
    CHECK(count);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(iovs[i].iov_len);
        CHECK(!(((uint64_t)(uintptr_t)iovs[i].iov_base | iovs[i].iov_len) & (stub.alignment - 1)));
        total += iovs[i].iov_len;
    }
    CHECK(!(offset & (stub.alignment - 1)));
    CHECK(offset >= stub.file_begin && offset <= stub.file_end);
    CHECK(total <= stub.file_end - offset);
    if (outcome < 128)
        return touch(iovs, count, total, write);
    if (outcome < 200)
        return touch(iovs, count, total * (outcome - 128) / 72, write);
    return outcome < 220 ? -EAGAIN : outcome < 240 ? -EIO : outcome < 250 ? 0 : -EOPNOTSUPP;
}

static int64_t perform(const struct vb_io_op *op)
{
    static const int errors[] = {0, 0, 0, EINTR, EIO, EOPNOTSUPP, ENOSYS, ENOSPC};

    if (op->opcode == VB_IO_DROP)
        return 0;
    CHECK(op->fd == stub.fd);
    CHECK(op->file == -1 || stub.kept[op->file] == op->fd);
    if (op->opcode == VB_IO_READ || op->opcode == VB_IO_WRITE)
        return transfer(op->iovs, op->count, op->offset, op->opcode == VB_IO_WRITE);
    if (op->opcode == VB_IO_FALLOCATE) {
        CHECK(op->length && op->offset >= stub.file_begin && op->offset <= stub.file_end);
        CHECK(op->length <= stub.file_end - op->offset);
    }
    return stub.benign ? 0 : -errors[take_u8(stub.input) % 8];
}

static void stub_queue(struct vb_io *io, struct vb_io_op *op)
{
    CHECK(stub.count < 256);
    stub.waiting[stub.count++] = op;
}

static void stub_submit(struct vb_io *io)
{
}

/* Any one operation. */
static struct vb_io_op *stub_reap(struct vb_io *io)
{
    struct vb_io_op *op;
    unsigned which;

    if (!stub.count)
        return NULL;
    which = take_u8(stub.input) % stub.count;
    op = stub.waiting[which];
    stub.waiting[which] = stub.waiting[--stub.count];
    op->result = perform(op);
    op->next = NULL;
    return op;
}

static int stub_keep_file(struct vb_io *io, int fd, struct vb_io_op *drop)
{
    CHECK(fd == stub.fd);
    CHECK(drop->opcode == VB_IO_DROP);
    for (int i = 0; i < KEPT_FILES; i++)
        if (!stub.kept[i]) {
            stub.kept[i] = fd;
            stub.drops[i] = drop;
            return i;
        }
    return -1;
}

/* Every other file is closed at once. */
static bool stub_drop_file(struct vb_io *io, int file)
{
    bool later = stub.kept[file] & 1;

    CHECK(stub.kept[file]);
    for (unsigned i = 0; i < stub.count; i++)
        CHECK(stub.waiting[i]->opcode == VB_IO_DROP || stub.waiting[i]->file != file);
    stub.kept[file] = 0;
    if (later)
        stub_queue(io, stub.drops[file]);
    return later;
}

static bool stub_arm(struct vb_io *io, bool armed)
{
    return false;
}

static const struct vb_io_vtable stub_vtable = {
    stub_queue, stub_submit, stub_keep_file, stub_drop_file, stub_reap, stub_arm, NULL,
};

/* Attempts at once, see fuzz/build. */

ssize_t __wrap_preadv2(int fd, const struct iovec *iovs, int count, off_t offset, int flags)
{
    int64_t result = transfer(iovs, count, offset, false);

    CHECK(fd == stub.fd);
    errno = result < 0 ? -result : 0;
    return result < 0 ? -1 : result;
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iovs, int count, off_t offset)
{
    int64_t result = transfer(iovs, count, offset, true);

    CHECK(fd == stub.fd);
    errno = result < 0 ? -result : 0;
    return result < 0 ? -1 : result;
}

#endif
