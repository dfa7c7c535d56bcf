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

/* Requests that completed within the turn that they came in, to be counted when it ends. */
struct vb_counts {
    uint32_t operations[VB_STAT_KINDS];
    uint64_t bytes[VB_STAT_KINDS];
};

static inline void vb_counts_add(struct vb_counts *counts, unsigned kind, uint64_t bytes)
{
    counts->operations[kind]++;
    counts->bytes[kind] += bytes;
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

/* Count what completed within the turn that began at `now`. */
static inline void vb_stats_take(struct vb_stats *stats, struct vb_counts *counts, uint64_t now)
{
    uint64_t ns = 0;

    for (unsigned kind = 0; kind < VB_STAT_KINDS; kind++) {
        if (!counts->operations[kind])
            continue;
        if (!ns)
            ns = vb_now() - now;
        vb_stats_add(stats, kind, counts->operations[kind], counts->bytes[kind], ns);
        counts->operations[kind] = 0;
        counts->bytes[kind] = 0;
    }
}

#endif
