/* SPDX-License-Identifier: Apache-2.0 */
/* Requests that an extent map does not cover go up to Python. */
struct vb_upcall {
    uint64_t offset; /* of the disk, in bytes; of the port's own kinds whatever they have */
    uint64_t length; /* in bytes */
    uint32_t iov_first;
    uint32_t iov_count;
    uint16_t tag;   /* what it is answered by */
    uint16_t kind;  /* enum vb_task_kind */
    uint16_t flags; /* enum vb_task_flags */
    uint16_t reserved;
};

/* Take up to `limit` requests of one port, which is told, and their segments, of which at most
 * `iov_limit` fit. `iov_first` of a record counts from `iovs`. Returns how many; call again until
 * that is 0. A first request with more segments than iov_limit is a caller's error. */
uint32_t vb_upcalls_take(struct vb_iothread *iothread, uint32_t limit, struct vb_upcall *records,
                         struct vb_port **port, uint32_t iov_limit, uint64_t *iovs);

/* Look, in the thread's place, for requests of ports that go by no map, for these all go up: it saves
 * waking the thread. Returns how many such ports there are. Where there are some, the thread leaves
 * them alone, and upcalls of others are not announced, until `vb_upcalls_look_no_more`. */
uint32_t vb_upcalls_look(struct vb_iothread *iothread);
void vb_upcalls_look_no_more(struct vb_iothread *iothread);
