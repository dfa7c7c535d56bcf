/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "watchdog.h"

#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

/* Between two looks; a wait for a peer takes this twice at most. */
#define TICK_NS 25000000

/* Looks at nothing but sleeping iothreads before it rests. */
#define IDLE_TICKS 8

/* No signal of anybody else's, in our process. */
#define WAKING_SIGNAL (SIGRTMAX - 4)

bool vb_watchdog_rests;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static struct vb_watched *first;
static bool running; /* from the first iothread on, for good */

/* Its only effect is that a system call returns. */
static void wake(int number)
{
}

/* Look at one iothread; true where it has been awake since the last time. */
static bool look(struct vb_watched *watched)
{
    uint64_t steps = __atomic_load_n(&watched->steps, __ATOMIC_RELAXED);
    uint32_t doing = __atomic_load_n(&watched->doing, __ATOMIC_SEQ_CST);
    bool same = steps == watched->seen_steps && doing == watched->seen_doing;

    watched->seen_steps = steps;
    watched->seen_doing = doing;
    if (same && doing == VB_DOING_NOTIFY)
        pthread_kill(watched->thread, WAKING_SIGNAL);
    return !same || doing != VB_DOING_SLEEP;
}

static bool look_at_all(void)
{
    bool awake = false;

    for (struct vb_watched *watched = first; watched; watched = watched->next)
        awake |= look(watched);
    return awake;
}

static void rest(void)
{
    __atomic_store_n(&vb_watchdog_rests, true, __ATOMIC_SEQ_CST);
    /* Who wakes after this has seen that we rest. */
    if (!look_at_all())
        pthread_cond_wait(&changed, &lock);
    __atomic_store_n(&vb_watchdog_rests, false, __ATOMIC_SEQ_CST);
}

static void *watch(void *argument)
{
    unsigned idle = 0;

    prctl(PR_SET_NAME, "watchdog");
    pthread_mutex_lock(&lock);
    for (;;) {
        struct timespec until;

        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += TICK_NS;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&changed, &lock, &until);
        idle = look_at_all() ? 0 : idle + 1;
        if (idle == IDLE_TICKS) {
            rest();
            idle = 0;
        }
    }
    return NULL;
}

static bool start(void)
{
    struct sigaction action = {.sa_handler = wake};
    pthread_condattr_t monotonic;
    pthread_attr_t detached;
    pthread_t thread;
    sigset_t all, old;

    sigemptyset(&action.sa_mask);
    if (sigaction(WAKING_SIGNAL, &action, NULL))
        return false;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    running = !pthread_create(&thread, &detached, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&detached);
    return running;
}

bool vb_watchdog_add(struct vb_watched *watched)
{
    sigset_t signals;
    bool watches;

    pthread_mutex_lock(&lock);
    watches = running || start();
    if (watches) {
        watched->thread = pthread_self();
        watched->next = first;
        first = watched;
        pthread_cond_signal(&changed);
    }
    pthread_mutex_unlock(&lock);
    sigemptyset(&signals);
    sigaddset(&signals, WAKING_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
    return watches;
}

void vb_watchdog_remove(struct vb_watched *watched)
{
    pthread_mutex_lock(&lock);
    for (struct vb_watched **link = &first; *link; link = &(*link)->next)
        if (*link == watched) {
            *link = watched->next;
            break;
        }
    pthread_mutex_unlock(&lock);
}

void vb_watchdog_rouse(void)
{
    pthread_mutex_lock(&lock);
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}
