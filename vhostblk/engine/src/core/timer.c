/* SPDX-License-Identifier: Apache-2.0 */
#include "timer.h"

#include <errno.h>
#include <sys/timerfd.h>

#define SECOND 1000000000ull

int vb_timer_new(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

void vb_timer_set(int fd, uint64_t wait)
{
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(wait / SECOND), .tv_nsec = (long)(wait % SECOND)},
    };

    timerfd_settime(fd, 0, &when, NULL);
}
