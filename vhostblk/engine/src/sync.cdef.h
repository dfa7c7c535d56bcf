/* SPDX-License-Identifier: Apache-2.0 */
/* What all share who bring an open file's data to storage, in Python and on iothreads: fdatasync and
 * RWF_DSYNC. The kernel reports a write-back error once per open file. If two such operations ran at
 * a time, one of them could succeed although the data that it stands for is lost, because the other
 * one got the error. So they run one at a time, and the error is noted before the next one begins. */
enum vb_sync_holder {
    VB_SYNC_ENGINE = 1, /* an operation of an iothread is in flight */
    VB_SYNC_PYTHON = 2, /* Python runs one, or waits for the engine's to end; the engine begins none */
};

struct vb_sync {
    /* errno of the first failure, or 0. What was lost can't be known, so every later flush fails. */
    int32_t error;
    uint32_t holders; /* enum vb_sync_holder */
    int32_t event_fd; /* signalled when the engine's operation has ended that Python waits for */
};

/* Take the turn, if nobody has it or waits for it. */
int vb_sync_try(struct vb_sync *sync, uint32_t holder);

/* For Python: be next. True: it has the turn now; else `event_fd` will tell. */
int vb_sync_claim(struct vb_sync *sync);

/* Give the turn back; the outcome has been noted. */
void vb_sync_end(struct vb_sync *sync, uint32_t holder);
