/* SPDX-License-Identifier: Apache-2.0 */
/* What a group of throttled nodes may do: leaky buckets that Python and all iothreads take from. See
 * `engine/buckets.py` for the rules; times are those of CLOCK_MONOTONIC. Directions: 0 reads, 1
 * writes. */
struct vb_budget;

/* A limit: `avg` a second (0: none); up to `max`, if that is not 0, for `length` seconds. */
struct vb_rate {
    uint64_t avg;
    uint64_t max;
    uint64_t length;
};

struct vb_budget *vb_budget_new(void);
void vb_budget_free(struct vb_budget *budget);

/* Go by these six rates (bytes, then operations: total, read, write) and start with empty buckets.
 * Requests longer than `unit` bytes, if that is not 0, count as several operations. */
void vb_budget_configure(struct vb_budget *budget, const struct vb_rate *rates, uint64_t unit,
                         uint64_t now);

/* For Python: account for a request and return 0, or return how long it has to wait. `others` says
 * whether more of this direction wait; while any do, the engine takes nothing. */
uint64_t vb_budget_take(struct vb_budget *budget, int direction, uint64_t size, uint64_t now,
                        int others);

/* For Python: account for a request that goes in any case. */
void vb_budget_charge(struct vb_budget *budget, int direction, uint64_t size, int others);

/* For the engine: account for a request, or return 0, which sends it up. */
int vb_budget_spend(struct vb_budget *budget, int direction, uint64_t size, uint64_t now);
