/* SPDX-License-Identifier: Apache-2.0 */
/* A virtqueue of a virtio-blk device on an iothread.
 *
 * Each request lives in the slot of its head index from the moment it is taken until its used
 * element is written; the slots are allocated with the queue. A slot is free, with the engine (its
 * operation is in flight), or up (with Python).
 */
#ifndef VHOSTBLK_QUEUE_H
#define VHOSTBLK_QUEUE_H

#include "core/extent.h"
#include "core/io.h"
#include "core/iothread.h"
#include "core/stats.h"

#include "dirty_log.h"
#include "inflight.h"
#include "inflight_packed.h"
#include "request.h"

#include "queue.cdef.h"
#include "upcall.cdef.h"

enum { VB_FILE_NONE = -1, VB_FILE_UNTRIED = -2, VB_FILE_DROPPED = -3 };

enum vb_slot_state { VB_SLOT_FREE, VB_SLOT_MAPPED, VB_SLOT_UP };

/* Segments that a slot holds without allocating. */
#define VB_INLINE_IOVS 4

struct vb_slot {
    struct vb_request request; /* iov_first is 0 */
    struct iovec *iovs;        /* inline_iovs, or allocated */
    struct iovec inline_iovs[VB_INLINE_IOVS];
    struct vb_io_op op;
    struct vb_queue *queue;
    struct vb_extent_map *map;           /* that the operation goes by */
    struct vb_discard_segment *segments; /* private copy of the payload, while in progress */
    struct vb_slot *next_up;
    struct vb_slot *next_in_run;
    uint64_t begun;
    uint64_t done;      /* bytes transferred so far */
    int64_t sync_error; /* of a write with RWF_DSYNC, which is repeated without it */
    uint32_t segment, segment_count;
    uint32_t ring_length; /* descriptors of a packed ring */
    bool syncing; /* has the turn to sync the map's file */
    uint8_t state;
    uint8_t phase; /* of the queue when it began to go by the map */
};

/* Most segments of a run. */
#define VB_RUN_IOVS 128

/* Reads, or writes, of one sweep that follow each other in the file: one system call does them all.
 * The segments of a single request stay where they are. */
struct vb_run {
    struct vb_slot *first, *last;
    uint64_t end; /* file offset */
    uint64_t bytes;
    uint32_t count;
    uint32_t iov_count;
    struct iovec iovs[VB_RUN_IOVS];
};

struct vb_queue {
    struct vb_iothread *iothread;
    struct vb_queue_config config;
    struct vb_ring ring;
    struct vb_memory memory;
    struct vb_region *regions;
    struct vb_extent_map *map;
    int file;              /* the io's number of the map's file; or one of VB_FILE_* */
    bool file_stale;       /* it is that of a former map */
    struct vb_io_op drop;  /* completes when the kernel has closed the file */
    struct vb_chain chain; /* scratch */
    struct vb_run run;     /* empty between two sweeps */
    struct vb_slot *slots;
    struct vb_inflight inflight;
    struct vb_inflight_packed packed_inflight;
    struct vb_dirty_log log;
    struct vb_packed_desc *descs; /* scratch: a chain of a packed ring */
    uint32_t in_flight;
    uint32_t mapped_in_flight;
    uint32_t phase_in_flight[2]; /* the same by phase: see vb_queue_settle */
    uint32_t holds;
    uint8_t phase;
    bool settling;
    bool left_only;         /* take only requests that an earlier process left */
    uint16_t unpublished;   /* used elements that the driver has not been shown */
    uint32_t inline_count[VB_STAT_KINDS]; /* completed within this turn, for the statistics */
    uint64_t inline_bytes[VB_STAT_KINDS];
    uint64_t heap_bytes; /* of segments that did not fit their slots */
    uint32_t losses;     /* `vb_guard_losses` when the memory was last looked at */
    uint64_t slow_until; /* no blocking attempts before this time */
    int call_fd, err_fd;
    bool write_through;
    bool kicks_enabled;
    const char *broken; /* set under the lock, read without */
    int errors[2];      /* likewise: errno of a failed read, and of another failed request */
    struct vb_stats stats;
};

/* Take what is available and start it; true where there was something. Under the lock. A sweep is the
 * iothread's, and lets go of a file that is kept no longer. */
bool vb_queue_take(struct vb_queue *queue);
bool vb_queue_sweep(struct vb_queue *queue);

/* The number of requests that an earlier process left in flight and that are not taken yet. */
static inline uint32_t vb_queue_left(const struct vb_queue *queue)
{
    return queue->inflight.left_count - queue->inflight.left_taken;
}

/* `drop` has completed. */
void vb_queue_file_gone(struct vb_queue *queue);

/* Whether Python looks after its ring for now; see `vb_upcalls_look`. */
static inline bool vb_queue_looked_for(const struct vb_queue *queue)
{
    return queue->iothread->looked_for && !queue->map;
}

/* Whether it takes no more for now, for the memory that requests in flight need. */
bool vb_queue_full(const struct vb_queue *queue);

/* Show the driver what has completed. Under the lock. */
void vb_queue_publish(struct vb_queue *queue);

/* Ask for a kick; true where something has come meanwhile. */
bool vb_queue_arm(struct vb_queue *queue);

/* Go on with a slot whose operation has ended. */
void vb_slot_continue(struct vb_slot *slot);

/* Start a parsed request: `execute.c`. */
void vb_slot_execute(struct vb_slot *slot);

/* Do what was put off in the hope of more that belongs to it; ends a sweep. */
void vb_run_finish(struct vb_queue *queue);

/* Answer a request. `written`: bytes written to its data segments. */
void vb_slot_complete(struct vb_slot *slot, uint8_t status, uint64_t written);

/* Answer a request whose file I/O failed with an errno, and have Python told. */
void vb_slot_fail(struct vb_slot *slot, int error);

/* Hand a request to Python: `upcall.c`. */
void vb_slot_go_up(struct vb_slot *slot);

/* Note a write to the used ring, `offset` bytes from its beginning. */
static inline void vb_queue_log_used(struct vb_queue *queue, uint64_t offset, uint64_t length)
{
    if (__builtin_expect(queue->log.used, 0))
        vb_dirty_log_mark(&queue->log, queue->log.used_addr + offset, length);
}

/* Note a write to a packed ring, or to its event suppression, at a host address. */
static inline void vb_queue_log_ring(struct vb_queue *queue, uint64_t host, uint64_t length)
{
    if (__builtin_expect(queue->log.used, 0) && length)
        vb_dirty_log_mark_host(&queue->log, &queue->memory, host, length);
}

/* Note what has been written to guest memory at a host address, for a request. */
static inline void vb_queue_log_data(struct vb_queue *queue, uint64_t host, uint64_t length)
{
    if (__builtin_expect(queue->log.data, 0))
        vb_dirty_log_mark_host(&queue->log, &queue->memory, host, length);
}

static inline unsigned vb_stat_kind(uint32_t type)
{
    switch (type) {
    case VB_T_IN:
        return VB_STAT_READ;
    case VB_T_OUT:
    case VB_T_ZONE_APPEND:
        return VB_STAT_WRITE;
    case VB_T_FLUSH:
        return VB_STAT_FLUSH;
    case VB_T_DISCARD:
    case VB_T_WRITE_ZEROES:
    case VB_T_SECURE_ERASE:
        return VB_STAT_UNMAP;
    default:
        return VB_STAT_KINDS;
    }
}

#endif
