/* SPDX-License-Identifier: Apache-2.0 */
/* The plain requests of one connection: a CDB arrives whole with one descriptor, its parameter list too, the
 * descriptor is a SCSI disk or an sg device, and the client takes the reply. These need no Python. Everything
 * else is returned to Python as it was found; C has no rules of its own for it. */
enum vb_pr_sizes {
    VB_PR_CDB_SIZE = 16,
    VB_PR_SENSE_SIZE = 96,
    VB_PR_HEAD_SIZE = 104, /* of the reply: what comes before the data */
    VB_PR_MAX_DATA = 8192,
    VB_PR_MAX_FDS = 2, /* a second one is an error; the kernel closes any more */
};

/* Why `vb_pr_serve` has returned. */
enum vb_pr_event {
    VB_PR_READ,   /* to be judged by Python: `cdb`, `reply.data` and the descriptors, which are the caller's now */
    VB_PR_FAILED, /* SG_IO has failed: `error`, or `host_status` and `driver_status`; no reply was sent */
    VB_PR_UNSENT, /* only the first `sent` of the reply's `reply_size` bytes were sent */
};

/* A reply as it is sent; numbers are big endian. `data` also has the parameter list of a request. */
struct vb_pr_reply {
    uint8_t status[4];
    uint8_t length[4];
    uint8_t sense[96];
    uint8_t data[8192];
};

struct vb_pr_connection {
    int32_t socket; /* blocking; SO_RCVTIMEO limits each read */
    uint32_t timeout; /* of a command, in milliseconds */
    uint32_t ending;  /* set by another thread: carry out no command any more */

    int32_t error; /* errno of the read that failed last, or of SG_IO; 0: none */
    uint32_t cdb_read;
    uint32_t data_read;
    uint32_t fds_dropped; /* boolean: the kernel has closed descriptors */
    uint32_t fd_count;
    int32_t fds[2];
    uint8_t cdb[16];

    uint32_t host_status;
    uint32_t driver_status;

    uint32_t sent;
    uint32_t reply_size;
    struct vb_pr_reply reply;
};

/* Serve a connection that has agreed on features and is between two requests, until there is something for
 * Python. */
int vb_pr_serve(struct vb_pr_connection *connection);
