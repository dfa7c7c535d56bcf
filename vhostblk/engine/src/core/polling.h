/* SPDX-License-Identifier: Apache-2.0 */
/* How long to busy-poll before sleeping: QEMU's rule (`util/aio-posix.c`, poll-max-ns and friends).
 *
 * A sleep and a wake-up cost more than most requests, so a thread that has run out of work looks on
 * for `window` nanoseconds. Work that comes within the window leaves it as it is; work that comes
 * soon after a sleep makes it grow, since a little more would have caught it; a sleep longer than
 * the maximum makes it shrink, so that an idle guest costs nothing.
 */
#ifndef VHOSTBLK_POLLING_H
#define VHOSTBLK_POLLING_H

#include <stdatomic.h>
#include <stdint.h>

/* The thread's own but for `vb_poll_set`, hence atomics, which cost nothing here. */
struct vb_poll {
    _Atomic uint64_t max_ns;
    _Atomic uint64_t grow;
    _Atomic uint64_t shrink;
    _Atomic uint64_t window;
};

#define VB_POLL_START_NS 4000
#define VB_POLL_GROW 2

static inline uint64_t vb_poll_window(const struct vb_poll *poll)
{
    return atomic_load_explicit(&poll->window, memory_order_relaxed);
}

/* From any thread. */
static inline void vb_poll_set(struct vb_poll *poll, uint64_t max_ns, uint64_t grow,
                               uint64_t shrink)
{
    atomic_store_explicit(&poll->max_ns, max_ns, memory_order_relaxed);
    atomic_store_explicit(&poll->grow, grow, memory_order_relaxed);
    atomic_store_explicit(&poll->shrink, shrink, memory_order_relaxed);
    atomic_store_explicit(&poll->window, 0, memory_order_relaxed);
}

/* Learn from an idle time of `idle_ns`, polling and sleep together. */
static inline void vb_poll_learn(struct vb_poll *poll, uint64_t idle_ns)
{
    uint64_t max_ns = atomic_load_explicit(&poll->max_ns, memory_order_relaxed);
    uint64_t window = vb_poll_window(poll);

    if (idle_ns <= window)
        return;
    if (idle_ns > max_ns) {
        uint64_t shrink = atomic_load_explicit(&poll->shrink, memory_order_relaxed);

        window = shrink ? window / shrink : 0;
    } else if (window < max_ns) {
        uint64_t grow = atomic_load_explicit(&poll->grow, memory_order_relaxed);

        window = window ? window * (grow ? grow : VB_POLL_GROW) : VB_POLL_START_NS;
        window = window < max_ns ? window : max_ns;
    }
    atomic_store_explicit(&poll->window, window, memory_order_relaxed);
}

#endif
