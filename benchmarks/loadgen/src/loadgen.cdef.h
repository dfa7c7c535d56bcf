/* SPDX-License-Identifier: Apache-2.0
 *
 * What Python sees of the load generator; the C files include the same text.
 *
 * A worker is one thread. It drives one or more queues; a queue belongs to one worker. The fields
 * above each "state" line are Python's to set while no worker runs, those below are C's.
 */

#define LG_HISTOGRAM_BUCKETS 1920
#define LG_GENERATION_ZEROES 0x80000000

enum lg_error {
    LG_OK,
    LG_STALLED,          /* no completion for stall_ns */
    LG_DISCONNECTED,     /* the back-end closed its socket */
    LG_IO_ERROR,         /* a request ended with a status other than OK */
    LG_BAD_USED_INDEX,   /* more completions than requests in flight */
    LG_BAD_USED_ID,      /* a used element that names no request in flight */
    LG_LOST_INTERRUPT,   /* completions were there, but the call descriptor stayed silent */
    LG_KICK_FAILED,
    LG_WRONG_MAGIC,      /* verification: neither a block of ours nor zeroes */
    LG_WRONG_CHECKSUM,   /* verification: a torn or altered block */
    LG_WRONG_BLOCK,      /* verification: another block's contents */
    LG_WRONG_GENERATION, /* verification: a lost, stale or premature write */
    LG_WRONG_ZEROES,     /* verification: zeroes instead of data, or data instead of zeroes */
};

enum lg_operation { LG_NONE, LG_READ, LG_WRITE, LG_FLUSH, LG_WRITE_ZEROES };

/* The blocks that verification knows about, indexed by block number; shared by all queues, which
 * touch disjoint blocks. Generation 0 means "contents unknown". */
struct lg_ledger {
    uint64_t seed;
    uint32_t *generation; /* what the last completed write left */
    uint32_t *pending;    /* what a write that was never answered may have left, or 0 */
    uint8_t *busy;        /* a request is in flight */
};

/* Which requests a queue makes. Blocks are first, first + stride, ... (`blocks` of them). */
struct lg_workload {
    uint64_t first_block;
    uint64_t block_stride;
    uint64_t blocks;
    uint64_t seed;        /* of the choice of blocks and operations */
    uint64_t interval_ns; /* one request every so often; 0: as many as fit */
    uint64_t limit;       /* stop after so many requests; 0: no limit */
    uint32_t write_permille;
    uint32_t zeroes_permille;
    uint32_t flush_permille;
    bool sequential;
};

struct lg_slot;

struct lg_queue {
    uint8_t *memory;     /* guest memory as this process maps it */
    uint64_t guest_base; /* guest physical address of `memory` */
    uint64_t desc;       /* offsets into `memory` */
    uint64_t avail;
    uint64_t used;
    uint64_t control; /* 64 bytes a slot: header, status, write-zeroes segment */
    uint64_t tables;  /* indirect tables, segments + 2 entries a slot */
    uint64_t data;    /* data_stride bytes a slot */
    uint64_t data_stride;
    uint32_t block_size;
    uint16_t segments; /* descriptors that share a block's data */
    uint16_t size;     /* of the rings */
    uint16_t depth;
    int kick_fd;
    int call_fd;
    bool event_idx;
    bool indirect;
    bool packed;
    bool rewrite; /* a split ring's descriptors for each request, as drivers do */
    struct lg_workload workload;
    struct lg_ledger *ledger; /* NULL: no verification */

    /* state */
    struct lg_slot *slot;
    uint16_t *free_slots;
    uint16_t free_count;
    uint16_t avail_index;     /* next avail entry to fill */
    uint16_t published_index; /* what the device may see */
    uint16_t used_index;      /* next used entry to look at */
    uint16_t suppressed_at;
    bool avail_wrap; /* the wrap counters of a packed ring, whose indices are below its size */
    bool used_wrap;
    uint32_t unseen; /* descriptors that the device may not see yet, */
    uint16_t first_unseen;
    uint16_t first_flags; /* and the flags that will show them */
    uint64_t random;
    uint64_t position;
    uint64_t started;
    uint64_t due;

    /* statistics */
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    uint64_t zeroes;
    uint64_t kicks;
    uint64_t interrupts;
    uint64_t odd_lengths; /* used elements with another length than the device wrote */
    uint64_t histogram[LG_HISTOGRAM_BUCKETS];
};

struct lg_worker {
    struct lg_queue **queues;
    uint32_t count;
    int socket_fd; /* watched for a hang-up */
    uint64_t duration_ns;
    uint64_t stall_ns;
    uint64_t think_ns;   /* spin so long between completions and the next submission */
    bool wait_for_calls; /* sleep on the call descriptors instead of polling the used rings */
    uint32_t stop;       /* any thread may set it */

    /* state */
    uint64_t started_ns;
    uint64_t finished_ns;
    int error;
    uint32_t error_queue;
    uint64_t error_block;
    uint64_t expected; /* generation, status or index, by the kind of error */
    uint64_t found;
};

/* Allocate a queue's slots and write its descriptors; -1 for lack of memory. */
int lg_queue_init(struct lg_queue *queue);
void lg_queue_free(struct lg_queue *queue);

/* What can be said of the device's place after its death: the index of the used ring, as it has left
 * it; with a packed ring where it was started. */
uint32_t lg_known_base(const struct lg_queue *queue);

/* Where a device that has answered everything goes on. */
uint32_t lg_base(const struct lg_queue *queue);

/* Run until the time or the limits are over, and every request is answered. Returns the error. */
int lg_run(struct lg_worker *worker);
void lg_stop(struct lg_worker *worker);

/* Latency histogram: the bucket of a value, and the smallest value of a bucket. */
uint32_t lg_bucket(uint64_t value);
uint64_t lg_bucket_floor(uint32_t bucket);

/* The contents of a block, and whether memory holds them (an enum lg_error). */
void lg_pattern_fill(uint8_t *data, uint32_t size, uint64_t seed, uint64_t block,
                     uint32_t generation);
int lg_pattern_check(const uint8_t *data, uint32_t size, uint64_t seed, uint64_t block,
                     uint32_t generation, uint64_t *found);

/* A loop of plain system calls on a file; `slots` buffers take turns. */
struct lg_bare {
    int fd;
    uint8_t *buffers;
    uint32_t slots;
    uint32_t block_size;
    uint64_t blocks;
    bool write;
    bool sequential;
    uint64_t seed;
    uint64_t duration_ns;

    /* results */
    uint64_t calls;
    uint64_t ns;
};

/* Returns -1 with errno set if a call failed, or did less than a whole block (EIO). */
int lg_bare_run(struct lg_bare *bare);
