/* SPDX-License-Identifier: Apache-2.0 */
/* An engine thread: it sweeps its ports, does their file I/O, polls, and sleeps.
 *
 * Its ports, their tasks and its io belong to whoever has the lock: the thread during a turn (sweep,
 * submit, reap, publish), or Python for a moment between two turns (`command.h`). The thread may be in
 * a system call of any length meanwhile, so nobody else ever waits for the lock.
 */
#ifndef VHOSTBLK_IOTHREAD_H
#define VHOSTBLK_IOTHREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io.h"
#include "polling.h"
#include "watchdog.h"

#include "iothread.cdef.h"

struct vb_command;
struct vb_port;
struct vb_task;

struct vb_iothread {
    pthread_mutex_t lock;
    bool visited; /* Python has the lock */
    bool careful; /* a peer has made a notification wait: see `vb_iothread_notify` */
    pthread_t thread;
    int thread_id;
    int wake_fd; /* eventfd: leave the sleep */
    int upcall_fd;
    atomic_bool stopping;
    atomic_bool asleep; /* or about to be */
    bool uses_uring;
    struct vb_io *io;
    struct vb_watched watched;
    /* One window while only the guests can bring work, one while operations are in flight: a disk
     * that is slower than any window must not stop us from looking out for the guests. */
    struct vb_poll poll_guests;
    struct vb_poll poll_io;
    uint64_t now; /* the clock, about when the turn began */
    struct vb_port *ports;
    uint32_t port_count;
    bool ports_changed; /* the sleeper's descriptors are out of date */
    _Atomic(struct vb_command *) inbox; /* the newest is the first */
    /* Tasks that wait for Python, the newest first. */
    _Atomic(struct vb_task *) upcalls;
    atomic_bool looked_for; /* Python is looking for them: see `vb_upcalls_look` */
    /* Python's: those that it has fetched from there, the oldest first. */
    struct vb_task *fetched;
    struct vb_task **fetched_end;
    pthread_mutex_t news_lock;
    struct vb_port *news; /* under the lock for news */
    struct vb_iothread_config config;
};

/* Wake the thread where it sleeps. */
void vb_iothread_wake(struct vb_iothread *iothread);

/* Tell Python that there is something to look at. */
void vb_iothread_signal(struct vb_iothread *iothread);

/* Signal a peer's eventfd. */
void vb_iothread_notify(struct vb_iothread *iothread, int fd);

#endif
