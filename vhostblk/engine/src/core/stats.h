/* SPDX-License-Identifier: Apache-2.0 */
/* Counting requests. */
#ifndef VHOSTBLK_STATS_H
#define VHOSTBLK_STATS_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "stats.cdef.h"

static inline uint64_t vb_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Count `operations` of one kind that took `ns` each and `bytes` together. */
static inline void vb_stats_add(struct vb_stats *stats, unsigned kind, uint64_t operations,
                                uint64_t bytes, uint64_t ns)
{
    unsigned bucket = ns ? 63 - (unsigned)__builtin_clzll(ns) : 0;

    stats->operations[kind] += operations;
    stats->bytes[kind] += bytes;
    stats->total_ns[kind] += ns * operations;
    stats->latency[kind][bucket < 32 ? bucket : 31] += operations;
}

#endif
