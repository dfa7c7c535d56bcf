/* SPDX-License-Identifier: Apache-2.0 */
/* A thread that looks at all iothreads a few times a second, while any of them is awake.
 *
 * An iothread says what it is about to do before each system call that may take long. It may have to
 * wait there for a peer's eventfd, for this is checked by no flag of write(2): then a signal ends the
 * wait, and the iothread goes another way from then on (`notify.c`). Any other wait can't be ended;
 * Python is told of it.
 */
#ifndef VHOSTBLK_WATCHDOG_H
#define VHOSTBLK_WATCHDOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "watchdog.cdef.h"

struct vb_port;

/* An iothread as it is watched; it writes all but the last two. */
struct vb_watched {
    uint32_t doing; /* enum vb_doing */
    uint64_t steps; /* changes at least once a turn */
    const struct vb_port *port; /* whose request it is in */
    uint16_t kind;              /* of the task, if it is a file's */
    uint64_t offset, length;    /* likewise */
    pthread_t thread;
    struct vb_watched *next; /* the watchdog's */
    uint64_t seen_steps;
    uint32_t seen_doing;
};

/* Begin and end to watch an iothread; on its own thread. False: there is no watchdog. */
bool vb_watchdog_add(struct vb_watched *watched);
void vb_watchdog_remove(struct vb_watched *watched);

/* Wake the watchdog where it rests. */
void vb_watchdog_rouse(void);

extern bool vb_watchdog_rests;

static inline void vb_watched_step(struct vb_watched *watched)
{
    __atomic_store_n(&watched->steps, watched->steps + 1, __ATOMIC_RELAXED);
}

static inline void vb_watched_does(struct vb_watched *watched, enum vb_doing doing)
{
    __atomic_store_n(&watched->doing, doing, __ATOMIC_RELAXED);
}

static inline void vb_watched_wakes(struct vb_watched *watched)
{
    __atomic_store_n(&watched->doing, VB_DOING_TURN, __ATOMIC_SEQ_CST);
    if (__builtin_expect(__atomic_load_n(&vb_watchdog_rests, __ATOMIC_SEQ_CST), 0))
        vb_watchdog_rouse();
}

#endif
