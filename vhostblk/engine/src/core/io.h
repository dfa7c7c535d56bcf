/* SPDX-License-Identifier: Apache-2.0 */
/* Asynchronous file operations of one iothread: by io_uring, or by a pool of threads where that is
 * not allowed. Used by one thread at a time (the iothread's lock sees to it).
 */
#ifndef VHOSTBLK_IO_H
#define VHOSTBLK_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum vb_io_opcode { VB_IO_READ, VB_IO_WRITE, VB_IO_FSYNC, VB_IO_FALLOCATE, VB_IO_DROP };

/* One operation. It belongs to the io until it has been reaped. Of more than IOV_MAX segments the
 * first ones are transferred: a short result. */
struct vb_io_op {
    enum vb_io_opcode opcode;
    int fd;
    int file;  /* the kept file's number, in place of fd; negative: none */
    int flags; /* RWF_* of reads and writes; the mode of fallocate */
    uint32_t count;
    const struct iovec *iovs;
    uint64_t offset;
    uint64_t length; /* fallocate */
    int64_t result;  /* bytes, or 0, or -errno */
    struct vb_io_op *next;
};

struct vb_io;

struct vb_io_vtable {
    /* Take an operation; it starts by the next submit at the latest. */
    void (*queue)(struct vb_io *io, struct vb_io_op *op);
    void (*submit)(struct vb_io *io);
    /* Have the kernel keep an open file at hand, locks and all, whatever becomes of `fd`. Returns
     * its number, or -1 if this is not possible. `drop` is the operation that will drop it, a
     * VB_IO_DROP. */
    int (*keep_file)(struct vb_io *io, int fd, struct vb_io_op *drop);
    /* Undo `keep_file`; all operations on the file have completed. True: `drop` completes once the
     * kernel has closed the file, which may be later. False: `drop` won't complete. */
    bool (*drop_file)(struct vb_io *io, int file);
    /* The operations that have completed, as a list; NULL: none. */
    struct vb_io_op *(*reap)(struct vb_io *io);
    /* Have completions make poll_fd readable, or not; true where one waits to be reaped already. */
    bool (*arm)(struct vb_io *io, bool armed);
    void (*close)(struct vb_io *io);
};

struct vb_io {
    const struct vb_io_vtable *vtable;
    int poll_fd; /* while armed: readable once something has completed */
    unsigned in_flight;
    unsigned unsubmitted; /* the kernel has not taken these yet; submit again */
};

/* NULL: *error is the errno. */
struct vb_io *vb_io_open_uring(unsigned entries, unsigned max_batch, int *error);
struct vb_io *vb_io_open_pool(unsigned threads, int *error);

#endif
