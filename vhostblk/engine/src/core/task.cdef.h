/* SPDX-License-Identifier: Apache-2.0 */
/* What a task is to do. The first ones are counted apart (`enum vb_stat_kind`, where the last two are
 * one). */
enum vb_task_kind {
    VB_TASK_READ,
    VB_TASK_WRITE,
    VB_TASK_FLUSH,
    VB_TASK_DISCARD,
    VB_TASK_WRITE_ZEROES,
    /* From here on the port's own kinds, which only Python serves. */
    VB_TASK_OTHER = 256,
};

enum vb_task_flags {
    VB_TASK_FUA = 1,         /* a write is on stable storage when it is done */
    VB_TASK_MAY_UNMAP = 2,   /* zeroes may be a hole */
    VB_TASK_NO_FALLBACK = 4, /* what can't be done here is done with EOPNOTSUPP and does not go up */
};
