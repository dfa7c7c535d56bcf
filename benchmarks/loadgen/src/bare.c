/* SPDX-License-Identifier: Apache-2.0
 *
 * What one thread of this machine does at best: the system call for each request, and nothing else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/uio.h>
#include <time.h>

#include "loadgen.h"
#include "random.h"

#define CALLS_BETWEEN_CLOCKS 32

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static bool one_call(const struct lg_bare *bare, uint64_t block, uint32_t slot)
{
    uint32_t size = bare->block_size;
    struct iovec buffer = {bare->buffers + (uint64_t)slot * size, size};
    off_t offset = (off_t)(block * size);
    ssize_t done = bare->write ? pwritev2(bare->fd, &buffer, 1, offset, 0)
                               : preadv2(bare->fd, &buffer, 1, offset, 0);

    if (done >= 0 && done != (ssize_t)size)
        errno = EIO;
    return done == (ssize_t)size;
}

int lg_bare_run(struct lg_bare *bare)
{
    uint64_t random = random_start(bare->seed);
    uint64_t begin = clock_ns();

    bare->calls = 0;
    for (;;) {
        if (bare->calls % CALLS_BETWEEN_CLOCKS == 0) {
            bare->ns = clock_ns() - begin;
            if (bare->ns >= bare->duration_ns)
                return 0;
        }
        uint64_t block = bare->sequential ? bare->calls % bare->blocks
                                          : random_below(&random, bare->blocks);
        if (!one_call(bare, block, (uint32_t)(bare->calls % bare->slots)))
            return -1;
        bare->calls++;
    }
}
