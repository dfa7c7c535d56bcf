/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded: a file system that is frozen, to the threads of iothreads. A write waits as long as the file
 * that FROZEN names is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

ssize_t pwritev(int fd, const struct iovec *iovs, int count, off_t offset)
{
    static ssize_t (*real)(int, const struct iovec *, int, off_t);
    const char *frozen = getenv("FROZEN");

    while (frozen && syscall(SYS_gettid) != getpid() && !access(frozen, F_OK))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pwritev");
    return real(fd, iovs, count, offset);
}
