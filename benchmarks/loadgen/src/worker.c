/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop of one thread: reap, submit, again; look at the clock and at the socket now and then.
 *
 * It ends whatever the device does: once the time is over it waits for stragglers, and a device
 * that answers nothing for stall_ns while requests are in flight, or hangs up, ends the run.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "queue.h"
#include "ring.h"

#define MAX_QUEUES 64
#define SPINS_BETWEEN_CLOCKS 64
#define NS_BETWEEN_HANG_UP_CHECKS 1000000
#define SLEEP_NS 1000000000

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int worker_fail(struct lg_worker *worker, int error, uint32_t queue, uint64_t block,
                uint64_t expected, uint64_t found)
{
    worker->error = error;
    worker->error_queue = queue;
    worker->error_block = block;
    worker->expected = expected;
    worker->found = found;
    return -1;
}

void lg_stop(struct lg_worker *worker)
{
    __atomic_store_n(&worker->stop, 1, __ATOMIC_RELAXED);
}

static bool hung_up(struct lg_worker *worker)
{
    struct pollfd fd = {.fd = worker->socket_fd, .events = POLLIN | POLLRDHUP};

    return poll(&fd, 1, 0) > 0 && (fd.revents & (POLLHUP | POLLERR | POLLRDHUP | POLLNVAL));
}

static uint32_t total_in_flight(struct lg_worker *worker)
{
    uint32_t total = 0;

    for (uint32_t i = 0; i < worker->count; i++)
        total += queue_in_flight(worker->queues[i]);
    return total;
}

static bool all_exhausted(struct lg_worker *worker)
{
    for (uint32_t i = 0; i < worker->count; i++) {
        if (!queue_exhausted(worker->queues[i]))
            return false;
    }
    return true;
}

static bool any_used(struct lg_worker *worker)
{
    for (uint32_t i = 0; i < worker->count; i++) {
        if (queue_has_used(worker->queues[i]))
            return true;
    }
    return false;
}

/* How long until the next request is due (fixed rate), at most SLEEP_NS. */
static uint64_t until_due(struct lg_worker *worker, uint64_t now, bool submitting)
{
    uint64_t shortest = SLEEP_NS;

    for (uint32_t i = 0; submitting && i < worker->count; i++) {
        struct lg_queue *queue = worker->queues[i];
        if (!queue->free_count || queue_exhausted(queue) || !queue->workload.interval_ns)
            continue;
        uint64_t wait = queue->due > now ? queue->due - now : 0;
        shortest = wait < shortest ? wait : shortest;
    }
    return shortest;
}

/* Sleep until a call descriptor fires, as an interrupt-driven driver does. */
static int wait_for_call(struct lg_worker *worker, uint64_t now, bool submitting)
{
    struct pollfd fds[MAX_QUEUES + 1];
    uint64_t wait = until_due(worker, now, submitting);
    struct timespec timeout = {
        .tv_sec = (time_t)(wait / 1000000000),
        .tv_nsec = (long)(wait % 1000000000),
    };

    for (uint32_t i = 0; i < worker->count; i++) {
        queue_arm_interrupt(worker->queues[i]);
        fds[i] = (struct pollfd){.fd = worker->queues[i]->call_fd, .events = POLLIN};
    }
    fds[worker->count] = (struct pollfd){.fd = worker->socket_fd, .events = POLLRDHUP};
    if (!any_used(worker)) {
        int ready = ppoll(fds, worker->count + 1, &timeout, NULL);
        /* A completion may have come just after the timeout: allow its interrupt some time. */
        if (ready == 0 && wait == SLEEP_NS && any_used(worker)) {
            timeout = (struct timespec){.tv_sec = 1};
            ready = ppoll(fds, worker->count + 1, &timeout, NULL);
        }
        if (ready == 0 && wait == SLEEP_NS && any_used(worker))
            return worker_fail(worker, LG_LOST_INTERRUPT, 0, 0, 0, 0);
        for (uint32_t i = 0; ready > 0 && i < worker->count; i++) {
            uint64_t value;
            if ((fds[i].revents & POLLIN) &&
                read(worker->queues[i]->call_fd, &value, sizeof value) == sizeof value)
                worker->queues[i]->interrupts++;
        }
    }
    for (uint32_t i = 0; i < worker->count; i++)
        queue_suppress_interrupts(worker->queues[i]);
    return 0;
}

/* The time that a guest takes from an interrupt to its next request. */
static void think(struct lg_worker *worker, uint64_t *now)
{
    uint64_t until = *now + worker->think_ns;

    while (*now < until) {
        cpu_relax();
        *now = clock_ns();
    }
}

/* Reap and submit on every queue once. Returns the completions, or -1. */
static int sweep(struct lg_worker *worker, uint64_t *now, bool submitting, bool first)
{
    int total = 0;

    for (uint32_t i = 0; i < worker->count; i++) {
        struct lg_queue *queue = worker->queues[i];
        bool paced = queue->workload.interval_ns != 0;
        bool some = queue_has_used(queue);
        if (some || paced)
            *now = clock_ns();
        if (some) {
            int reaped = queue_reap(worker, i, *now);
            if (reaped < 0)
                return -1;
            total += reaped;
            if (submitting && worker->think_ns)
                think(worker, now);
        }
        /* A queue that stands empty was kept from submitting: try again. */
        if (submitting && (some || paced || first || !queue_in_flight(queue))) {
            if (queue_submit(worker, i, *now) < 0)
                return -1;
        }
    }
    return total;
}

static int run(struct lg_worker *worker)
{
    uint64_t now = clock_ns();
    uint64_t end = now + worker->duration_ns;
    uint64_t progress = now; /* when the last completion came */
    uint64_t checked = now;  /* when the socket was last looked at */
    uint32_t spins = 0;
    bool submitting = true;

    worker->started_ns = now;
    for (uint32_t i = 0; i < worker->count; i++)
        queue_start(worker->queues[i], now);
    for (bool first = true;; first = false) {
        int reaped = sweep(worker, &now, submitting, first);
        if (reaped < 0)
            return -1;
        if (reaped)
            progress = now;
        else if (++spins % SPINS_BETWEEN_CLOCKS == 0)
            now = clock_ns();
        else
            cpu_relax();
        uint32_t in_flight = total_in_flight(worker);
        if (submitting && (now >= end || all_exhausted(worker) ||
                           __atomic_load_n(&worker->stop, __ATOMIC_RELAXED)))
            submitting = false;
        if (!submitting && !in_flight)
            return 0;
        if (!in_flight)
            progress = now;
        if (reaped)
            continue;
        if (now > progress + worker->stall_ns)
            return worker_fail(worker, LG_STALLED, 0, 0, 0, in_flight);
        if (now > checked + NS_BETWEEN_HANG_UP_CHECKS) {
            checked = now;
            if (hung_up(worker))
                return worker_fail(worker, LG_DISCONNECTED, 0, 0, 0, in_flight);
        }
        if (worker->wait_for_calls) {
            if (wait_for_call(worker, now, submitting))
                return -1;
            now = clock_ns();
        }
    }
}

int lg_run(struct lg_worker *worker)
{
    worker->error = LG_OK;
    if (worker->count > MAX_QUEUES)
        worker_fail(worker, LG_BAD_USED_INDEX, 0, 0, MAX_QUEUES, worker->count);
    else
        run(worker);
    worker->finished_ns = clock_ns();
    return worker->error;
}
