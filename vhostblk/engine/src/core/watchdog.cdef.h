/* SPDX-License-Identifier: Apache-2.0 */
/* What an iothread is in. */
enum vb_doing {
    VB_DOING_SLEEP,
    VB_DOING_TURN,   /* nothing that waits, but for memory of a guest */
    VB_DOING_NOTIFY, /* a write to a peer's eventfd */
    VB_DOING_READ,   /* a read, or a write, of a file by a system call of its own */
    VB_DOING_WRITE,
    VB_DOING_SUBMIT, /* io_uring_enter */
};
