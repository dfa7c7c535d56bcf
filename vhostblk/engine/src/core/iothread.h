/* SPDX-License-Identifier: Apache-2.0 */
/* An engine thread: it sweeps its ports, does their file I/O, polls, and sleeps.
 *
 * One mutex an iothread guards all that belongs to it: its ports, their tasks and its io. The
 * thread holds it for one turn at a time (sweep, submit, reap, publish), so that a call from Python
 * finds everything between two turns, and nothing on the request path needs a lock of its own.
 * A caller announces itself in `callers` first; the thread lets it in before the next turn (a mutex
 * alone would not: whoever unlocks it is the likeliest to get it again).
 */
#ifndef VHOSTBLK_IOTHREAD_H
#define VHOSTBLK_IOTHREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io.h"
#include "polling.h"

#include "iothread.cdef.h"

struct vb_port;
struct vb_task;

struct vb_iothread {
    pthread_mutex_t lock;
    atomic_uint callers;
    pthread_t thread;
    int thread_id;
    int wake_fd; /* eventfd: leave the sleep */
    int upcall_fd;
    atomic_bool stopping;
    bool uses_uring;
    struct vb_io *io;
    /* One window while only the guests can bring work, one while operations are in flight: a disk
     * that is slower than any window must not stop us from looking out for the guests. */
    struct vb_poll poll_guests;
    struct vb_poll poll_io;
    uint64_t now; /* the clock, about when the turn began */
    struct vb_port **ports;
    uint32_t port_count;
    bool ports_changed; /* the sleeper's descriptors are out of date */
    /* Tasks that wait for Python, oldest first, and whether it has been told. */
    struct vb_task *upcalls;
    struct vb_task **upcalls_end;
    bool upcall_signalled;
    bool looked_for; /* Python is looking for them: see `vb_upcalls_look` */
    struct vb_iothread_config config;
};

/* Hold the thread between two turns; `leave` wakes it where it sleeps, `leave_asleep` does not. */
void vb_iothread_enter(struct vb_iothread *iothread);
void vb_iothread_leave(struct vb_iothread *iothread);
void vb_iothread_leave_asleep(struct vb_iothread *iothread);

/* Tell Python that there is something to look at. Under the lock. */
void vb_iothread_signal(struct vb_iothread *iothread);

#endif
