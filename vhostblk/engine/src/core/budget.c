/* SPDX-License-Identifier: Apache-2.0 */
/* Leaky buckets that several threads take from.
 *
 * Who waits is Python's business; here a gate for each direction says only that somebody does. The
 * engine closes it with the first request that it sends up for want of budget, so that none which
 * comes later, on any iothread, overtakes that one. Python opens it when it has let a request go and
 * nobody else waits. Every request that closes the gate reaches Python, whatever becomes of the
 * guest or the graph (a drained section waits for it), so that the gate does not stay closed for
 * good. A request that went up has not been accounted for: Python does that when it lets it go.
 *
 * Memory ordering: one mutex guards buckets and gates, and orders all accesses to them. It is held
 * for some tens of nanoseconds and by threads that take no other lock meanwhile; an iothread takes
 * it with its own lock held, Python with none. Only `limited` is read without it, to spare what has
 * no limits the lock: a thread that reads a stale value lets a request more go, or looks at the
 * buckets in vain. Nothing else is read on the strength of it, so that relaxed accesses do.
 */
#include "budget.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define SECOND 1e9
#define WAIT_MAX (1ull << 62)
#define BUCKETS 6

struct bucket {
    double avg;   /* 0: no limit */
    double brim;
    double burst; /* that the second bucket leaks at; 0: there is none */
    double burst_brim;
    double level, burst_level;
};

struct vb_budget {
    pthread_mutex_t lock;
    atomic_uint limited; /* by direction, a bit each: is there any limit? */
    struct bucket buckets[BUCKETS];
    bool gate_closed[2];
    uint64_t unit;
    uint64_t leaked; /* when the buckets did last */
};

/* The buckets that count a request: first the two of bytes, then the two of operations. */
static const unsigned counting[2][4] = {{0, 1, 3, 4}, {0, 2, 3, 5}};

struct vb_budget *vb_budget_new(void)
{
    struct vb_budget *budget = calloc(1, sizeof(*budget));

    if (budget)
        pthread_mutex_init(&budget->lock, NULL);
    return budget;
}

void vb_budget_free(struct vb_budget *budget)
{
    pthread_mutex_destroy(&budget->lock);
    free(budget);
}

void vb_budget_configure(struct vb_budget *budget, const struct vb_rate *rates, uint64_t unit,
                         uint64_t now)
{
    unsigned limited = 0;

    pthread_mutex_lock(&budget->lock);
    for (unsigned i = 0; i < BUCKETS; i++) {
        const struct vb_rate *rate = &rates[i];

        budget->buckets[i] = (struct bucket){
            .avg = (double)rate->avg,
            .brim = rate->max ? (double)(rate->max * rate->length) : (double)rate->avg / 10,
            .burst = rate->length > 1 ? (double)rate->max : 0,
            .burst_brim = (double)rate->max / 10,
        };
    }
    for (unsigned direction = 0; direction < 2; direction++)
        for (unsigned i = 0; i < 4; i++)
            if (rates[counting[direction][i]].avg)
                limited |= 1u << direction;
    budget->unit = unit;
    budget->leaked = now;
    atomic_store_explicit(&budget->limited, limited, memory_order_relaxed);
    pthread_mutex_unlock(&budget->lock);
}

static double drained(double level, double rate, double elapsed)
{
    double left = level - rate * elapsed / SECOND;

    return left > 0 ? left : 0;
}

/* The clocks of iothreads are those of their turns: some are a little behind. */
static void leak(struct vb_budget *budget, uint64_t now)
{
    double elapsed;

    if (now <= budget->leaked)
        return;
    elapsed = (double)(now - budget->leaked);
    budget->leaked = now;
    for (unsigned i = 0; i < BUCKETS; i++) {
        struct bucket *bucket = &budget->buckets[i];

        if (bucket->avg > 0) {
            bucket->level = drained(bucket->level, bucket->avg, elapsed);
            bucket->burst_level = drained(bucket->burst_level, bucket->burst, elapsed);
        }
    }
}

static uint64_t wait_for(double excess, double rate)
{
    double wait = excess * SECOND / rate;

    return wait < (double)WAIT_MAX ? (uint64_t)wait : WAIT_MAX;
}

static uint64_t bucket_wait(const struct bucket *bucket)
{
    if (!(bucket->avg > 0))
        return 0;
    if (bucket->level > bucket->brim)
        return wait_for(bucket->level - bucket->brim, bucket->avg);
    if (bucket->burst > 0 && bucket->burst_level > bucket->burst_brim)
        return wait_for(bucket->burst_level - bucket->burst_brim, bucket->burst);
    return 0;
}

static uint64_t longest_wait(struct vb_budget *budget, int direction, uint64_t now)
{
    uint64_t longest = 0;

    leak(budget, now);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t wait = bucket_wait(&budget->buckets[counting[direction][i]]);

        if (wait > longest)
            longest = wait;
    }
    return longest;
}

static void account(struct vb_budget *budget, int direction, uint64_t size)
{
    double operations = budget->unit && size > budget->unit
                            ? (double)size / (double)budget->unit : 1;

    for (unsigned i = 0; i < 4; i++) {
        struct bucket *bucket = &budget->buckets[counting[direction][i]];
        double amount = i < 2 ? (double)size : operations;

        if (bucket->avg > 0) {
            bucket->level += amount;
            if (bucket->burst > 0)
                bucket->burst_level += amount;
        }
    }
}

uint64_t vb_budget_take(struct vb_budget *budget, int direction, uint64_t size, uint64_t now,
                        int others)
{
    uint64_t wait;

    pthread_mutex_lock(&budget->lock);
    wait = longest_wait(budget, direction, now);
    if (!wait)
        account(budget, direction, size);
    budget->gate_closed[direction] = wait || others;
    pthread_mutex_unlock(&budget->lock);
    return wait;
}

void vb_budget_charge(struct vb_budget *budget, int direction, uint64_t size, int others)
{
    pthread_mutex_lock(&budget->lock);
    account(budget, direction, size);
    budget->gate_closed[direction] = others;
    pthread_mutex_unlock(&budget->lock);
}

int vb_budget_spend(struct vb_budget *budget, int direction, uint64_t size, uint64_t now)
{
    bool may;

    if (!(atomic_load_explicit(&budget->limited, memory_order_relaxed) & 1u << direction))
        return true;
    pthread_mutex_lock(&budget->lock);
    may = !budget->gate_closed[direction] && !longest_wait(budget, direction, now);
    if (may)
        account(budget, direction, size);
    else
        budget->gate_closed[direction] = true;
    pthread_mutex_unlock(&budget->lock);
    return may;
}
