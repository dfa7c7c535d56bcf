/* SPDX-License-Identifier: Apache-2.0 */
/* Engine threads. */

struct vb_iothread;

struct vb_iothread_config {
    uint64_t poll_max_ns; /* longest busy-polling before sleeping; 0: none */
    uint64_t poll_grow;   /* factor; 0: the default, 2 */
    uint64_t poll_shrink; /* divisor; 0: back to no polling at once */
    uint32_t max_batch;   /* operations submitted at once; 0: all of a sweep */
    uint32_t pool_threads; /* for file I/O without io_uring */
    uint8_t no_uring;
    char name[16];        /* of the thread, as tools show it; ends with a zero byte */
    int32_t upcall_fd;    /* eventfd: there are upcalls, or news of a port; stays the caller's */
};

/* NULL: *error is the errno. */
struct vb_iothread *vb_iothread_new(const struct vb_iothread_config *config, int *error);

/* Stop the thread and free it; all ports are gone. */
void vb_iothread_free(struct vb_iothread *iothread);

int vb_iothread_uses_uring(struct vb_iothread *iothread);
int vb_iothread_thread_id(struct vb_iothread *iothread);
void vb_iothread_set_poll(struct vb_iothread *iothread, uint64_t max_ns, uint64_t grow,
                          uint64_t shrink);

struct vb_report {
    uint64_t steps; /* as long as they are the same it is in one and the same thing */
    uint32_t doing;
    uintptr_t port; /* of reads, writes and notifications: whose, and where on the disk */
    uint64_t offset;
    uint64_t length;
};

/* What an iothread is in; takes no lock. */
void vb_iothread_report(const struct vb_iothread *iothread, struct vb_report *report);
