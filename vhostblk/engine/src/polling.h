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

#include <stdint.h>

struct vb_poll {
    uint64_t max_ns;
    uint64_t grow;
    uint64_t shrink;
    uint64_t window;
};

#define VB_POLL_START_NS 4000
#define VB_POLL_GROW 2

/* Learn from an idle time of `idle_ns`, polling and sleep together. */
static inline void vb_poll_learn(struct vb_poll *poll, uint64_t idle_ns)
{
    if (idle_ns <= poll->window)
        return;
    if (idle_ns > poll->max_ns) {
        poll->window = poll->shrink ? poll->window / poll->shrink : 0;
    } else if (poll->window < poll->max_ns) {
        uint64_t grown = poll->window * (poll->grow ? poll->grow : VB_POLL_GROW);

        if (!poll->window)
            grown = VB_POLL_START_NS;
        poll->window = grown < poll->max_ns ? grown : poll->max_ns;
    }
}

#endif
