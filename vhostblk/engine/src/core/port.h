/* SPDX-License-Identifier: Apache-2.0 */
/* A port: where requests come from that an iothread serves, and where answers go. There is a kind of
 * port for each protocol: this is what all have in common.
 */
#ifndef VHOSTBLK_PORT_H
#define VHOSTBLK_PORT_H

#include "command.h"
#include "run.h"
#include "stats.h"
#include "task.h"

#include "port.cdef.h"

enum { VB_FILE_NONE = -1, VB_FILE_UNTRIED = -2, VB_FILE_DROPPED = -3 };

/* What a port may still do in this turn, before the next one's. */
struct vb_turn {
    uint32_t requests;
    int64_t bytes; /* copied by the iothread's own hand */
    uint64_t ends; /* the clock, once it was looked at */
};

/* What a kind of port does. All but `destroy` run between two turns, or in one. */
struct vb_port_vtable {
    /* Take requests that have come, as tasks, and start them. True: there were some. */
    bool (*sweep)(struct vb_port *port);
    /* Show the other side what has completed. */
    void (*publish)(struct vb_port *port);
    /* Ask to be woken by `wake_fd`, which then was readable. True: something has come meanwhile. Both
     * may be NULL: the descriptor tells by itself. */
    bool (*arm)(struct vb_port *port);
    void (*woken)(struct vb_port *port);
    /* The task with a tag, or NULL; tags count from 0. */
    struct vb_task *(*find)(struct vb_port *port, uint16_t tag);
    /* Complete a task that was up, with a status of the port's protocol. */
    void (*complete)(struct vb_port *port, struct vb_task *task, uint8_t status, uint32_t bytes);
    /* Free what belongs to it, and the port. */
    void (*destroy)(struct vb_port *port);
};

struct vb_port {
    const struct vb_port_vtable *vtable;
    struct vb_iothread *iothread;
    struct vb_extent_map *map;
    struct vb_port *next, *previous; /* of the iothread's */
    uint64_t size;   /* bytes of the disk */
    uint32_t block;  /* ranges are multiples of it */
    int wake_fd;     /* readable: something has come. -1: the port is polled */
    int file;        /* the io's number of the map's file; or one of VB_FILE_* */
    bool file_stale; /* it is that of a former map */
    bool full;       /* the port has no place for one more request */
    bool wants_room; /* answers wait until `wake_fd` can be written to */
    bool settling;
    bool settle_awaited; /* Python waits until no command is pending, quiet ones included */
    bool opened;     /* it is on the iothread's list */
    uint8_t phase;
    uint32_t holds;
    uint32_t in_flight;
    uint32_t shown;   /* what Python sees as in flight, from the last turn */
    uint32_t pending; /* commands that have not run */
    bool has_news;    /* it is on the iothread's list of those */
    struct vb_port *next_news;
    uint32_t mapped_in_flight;
    uint32_t phase_in_flight[2]; /* the same by phase: see vb_port_settle */
    struct vb_io_op drop;        /* completes when the kernel has closed the file */
    struct vb_run run;           /* empty between two sweeps */
    struct vb_turn turn;
    /* Tasks with more pieces to do. */
    struct vb_task *pieces, **pieces_end;
    uint64_t slow_until;         /* no blocking attempts before this time */
    uint64_t heap_bytes;         /* of segments that did not fit their tasks */
    const char *broken;          /* read without the lock, too */
    int errors[2];               /* likewise: errno of a failed read, and of another failed request */
    struct vb_counts counts;     /* of this turn */
    struct vb_stats stats;
};

/* Set a new port up: held once, without a map, and not open. It has a duplicate of the descriptor.
 * False: out of memory, or of descriptors. */
bool vb_port_init(struct vb_port *port, const struct vb_port_vtable *vtable,
                  struct vb_iothread *iothread, int wake_fd);

/* Free what `vb_port_init` has made. */
void vb_port_fini(struct vb_port *port);

/* Have Python look at the port. */
void vb_port_news(struct vb_port *port);

/* Show Python how many requests are in flight; at the end of a turn, after publishing. */
void vb_port_show(struct vb_port *port);

/* `drop` has completed. */
void vb_port_file_gone(struct vb_port *port);

/* Serve no more requests, for a reason that is a constant. */
void vb_port_break(struct vb_port *port, const char *reason);

/* Have Python told of a request that failed with an errno. */
void vb_port_note_error(struct vb_port *port, const struct vb_task *task, int error);

/* Whether it takes no more for now, for what requests in flight need. */
static inline bool vb_port_full(const struct vb_port *port)
{
    /* Segments of long requests, all in flight together. */
    return port->full || port->heap_bytes >= 16 << 20;
}

/* Whether it takes requests now. */
static inline bool vb_port_takes(const struct vb_port *port)
{
    return !port->holds && !port->broken && !vb_port_full(port);
}

/* Give a port its turn: to go on with what it has, and to take requests. True: there was something to
 * do. The iothread's. */
bool vb_port_turn(struct vb_port *port);

/* Begin to count what it does in a turn. */
void vb_port_begin_turn(struct vb_port *port);

/* Whether Python looks after the port for now; see `vb_upcalls_look`. */
bool vb_port_looked_for(const struct vb_port *port);

/* Whether the turn has not lasted too long. */
bool vb_port_has_time(struct vb_port *port);

/* Whether it may take one more request in this turn, which counts as taken then. */
static inline bool vb_port_takes_one(struct vb_port *port)
{
    if (!port->turn.requests || port->turn.bytes <= 0 || vb_port_full(port))
        return false;
    port->turn.requests--;
    return port->turn.requests % 32 || vb_port_has_time(port);
}

/* Sweep and arm a port, if it takes requests now. */
static inline bool vb_port_sweep(struct vb_port *port)
{
    return vb_port_takes(port) && port->vtable->sweep(port);
}

static inline bool vb_port_arm(struct vb_port *port)
{
    return vb_port_takes(port) && port->vtable->arm && port->vtable->arm(port);
}

/* Count a request that has succeeded. */
static inline void vb_port_count(struct vb_port *port, const struct vb_task *task, unsigned kind,
                                 uint64_t bytes, uint64_t now)
{
    if (task->begun == now)
        vb_counts_add(&port->counts, kind, bytes);
    else
        vb_stats_add(&port->stats, kind, 1, bytes, now - task->begun);
}

#endif
