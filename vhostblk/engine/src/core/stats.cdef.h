/* SPDX-License-Identifier: Apache-2.0 */
/* Statistics of one queue, written by its iothread, read by Python without a lock. */
enum vb_stat_kind { VB_STAT_READ, VB_STAT_WRITE, VB_STAT_FLUSH, VB_STAT_UNMAP, VB_STAT_KINDS = 4 };

struct vb_stats {
    uint64_t operations[4];
    uint64_t bytes[4];
    uint64_t failed[4];
    uint64_t total_ns[4];
    uint64_t merged[4]; /* requests done together with the one before them */
    uint64_t invalid;   /* malformed requests, and unknown ones */
    uint64_t upcalls;   /* requests that Python served */
    uint64_t sweeps;    /* turns that found work */
    uint64_t notified;  /* notifications sent to the guest */
    uint64_t kicks;     /* wake-ups by the guest */
    uint64_t latency[4][32]; /* [kind][n]: requests that took 2**n ns or more, below 2**(n+1) */
};
