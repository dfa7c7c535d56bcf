/* SPDX-License-Identifier: Apache-2.0 */
/* File I/O. Calls return a count or 0, or -errno. Addresses are those of `struct iovec` arrays. */

/* At once, on the calling thread. */
int64_t vb_preadv(int fd, uintptr_t iov, unsigned count, int64_t offset, int flags);
int64_t vb_pwritev(int fd, uintptr_t iov, unsigned count, int64_t offset, int flags);

/* Fill each segment from an offset of its own, as vb_preadv does. */
void vb_pread_segments(int fd, uintptr_t iov, unsigned count, const int64_t *offsets, int flags,
                       int64_t *results);

/* Where there is data from each of the offsets on: lseek(2), SEEK_DATA. */
void vb_seek_data(int fd, unsigned count, const int64_t *offsets, int64_t *results);

/* An io_uring and what it has completed. One thread uses it. */
struct vb_completion {
    uint32_t slot;
    int32_t result;
};

struct vb_aio;

/* Completions are also announced by `event_fd`. NULL: *error is the errno. */
struct vb_aio *vb_aio_open(unsigned entries, unsigned completions, int event_fd, int *error);
void vb_aio_close(struct vb_aio *aio);

/* Queue an operation; `slot` comes back with its completion. -EBUSY: the queue is full. */
int vb_aio_preadv(struct vb_aio *aio, uint32_t slot, int fd, uintptr_t iov, unsigned count,
                  int64_t offset);
int vb_aio_pwritev(struct vb_aio *aio, uint32_t slot, int fd, uintptr_t iov, unsigned count,
                   int64_t offset);
int vb_aio_fdatasync(struct vb_aio *aio, uint32_t slot, int fd);
int vb_aio_fallocate(struct vb_aio *aio, uint32_t slot, int fd, int mode, int64_t offset,
                     int64_t length);

/* Submit what is queued. Returns how many operations are still queued, or -errno where it is no use
 * to try again: then take them back. */
int vb_aio_submit(struct vb_aio *aio);

/* Take back the operations that are queued; returns how many, their slots in `slots`, which has room
 * for all `entries`. */
int vb_aio_withdraw(struct vb_aio *aio, uint32_t *slots);

/* Take up to `limit` completions; returns how many, or -errno where there are none and what is in
 * flight can't be asked for any more. */
int vb_aio_reap(struct vb_aio *aio, struct vb_completion *completions, unsigned limit);
