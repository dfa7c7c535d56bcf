/* SPDX-License-Identifier: Apache-2.0 */
/* The turn to sync an open file (fdatasync, RWF_DSYNC), shared by Python and the iothreads. The kernel
 * reports a write-back error once per open file. With two such operations at a time, one could succeed
 * although its data is lost, because the other one got the error. So they run one at a time, and the
 * error is noted before the next one begins. */
enum vb_sync_holder {
    VB_SYNC_ENGINE = 1, /* an operation of an iothread is in flight */
    VB_SYNC_PYTHON = 2, /* Python runs one, or waits for its turn; iothreads begin none */
};

struct vb_sync {
    /* errno of the last failure, or 0. It is not known which data was lost: all later flushes fail. */
    int32_t error;
    uint32_t holders; /* enum vb_sync_holder */
    int32_t event_fd; /* signalled when the operation that Python waits for has ended */
};

/* Take the turn, if nobody has it or waits for it. */
int vb_sync_try(struct vb_sync *sync, uint32_t holder);

/* For Python: be next. True: it has the turn now; else `event_fd` will tell. */
int vb_sync_claim(struct vb_sync *sync);

/* Give the turn back; the outcome has been noted. */
void vb_sync_end(struct vb_sync *sync, uint32_t holder);
