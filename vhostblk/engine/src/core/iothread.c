/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "iothread.h"

#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "command.h"
#include "notify.h"
#include "port.h"

/* Entries of the io_uring; what does not fit waits. */
#define URING_ENTRIES 256

/* How often a port without a descriptor is looked at, and an io that is stuck tried again. */
#define POLLED_PORT_MS 1

/* What a new thread is told, and what it answers. */
struct start {
    struct vb_iothread *iothread;
    int error;
    sem_t done;
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void vb_iothread_wake(struct vb_iothread *iothread)
{
    eventfd_write(iothread->wake_fd, 1);
}

void vb_iothread_signal(struct vb_iothread *iothread)
{
    eventfd_write(iothread->upcall_fd, 1);
}

/* A write is the cheapest way. Where a peer makes it wait the watchdog ends that, and then all
 * notifications go the other way. Python never waits. */
void vb_iothread_notify(struct vb_iothread *iothread, int fd)
{
    int result, error;

    if (iothread->visited || iothread->careful) {
        vb_notify(fd);
        return;
    }
    vb_watched_step(&iothread->watched);
    vb_watched_does(&iothread->watched, VB_DOING_NOTIFY);
    result = eventfd_write(fd, 1);
    error = errno;
    vb_watched_does(&iothread->watched, VB_DOING_TURN);
    if (result && error == EINTR) {
        iothread->careful = true;
        vb_notify(fd);
    }
}

/* The ring does not tell any more: fail what the kernel has, which may yet do it. */
static void fail_in_kernel(struct vb_iothread *iothread)
{
    struct vb_io *io = iothread->io;

    for (struct vb_port *port = iothread->ports; port && io->in_flight; port = port->next) {
        if (port->file == VB_FILE_DROPPED) {
            io->in_flight--;
            vb_port_file_gone(port);
        }
        for (uint32_t tag = 0; tag <= UINT16_MAX; tag++) {
            struct vb_task *task = port->vtable->find(port, (uint16_t)tag);

            if (!task)
                break;
            if (!task->op.in_kernel)
                continue;
            task->op.in_kernel = false;
            task->op.result = io->lost;
            io->in_flight--;
            vb_task_continue(task);
        }
    }
}

static bool reap(struct vb_iothread *iothread)
{
    struct vb_io_op *op = iothread->io->vtable->reap(iothread->io);
    bool any = op != NULL;

    if (any)
        iothread->now = vb_now();
    while (op) {
        struct vb_io_op *next = op->next;

        if (op->opcode == VB_IO_DROP)
            vb_port_file_gone((struct vb_port *)((char *)op - offsetof(struct vb_port, drop)));
        else
            vb_task_continue((struct vb_task *)((char *)op - offsetof(struct vb_task, op)));
        op = next;
    }
    if (__builtin_expect(iothread->io->lost, 0) && iothread->io->in_flight) {
        fail_in_kernel(iothread);
        any = true;
    }
    return any;
}

static void publish_all(struct vb_iothread *iothread)
{
    for (struct vb_port *port = iothread->ports; port; port = port->next) {
        port->vtable->publish(port);
        vb_port_show(port);
    }
}

static void submit(struct vb_iothread *iothread)
{
    struct vb_io *io = iothread->io;

    vb_watched_does(&iothread->watched, VB_DOING_SUBMIT);
    io->vtable->submit(io);
    vb_watched_does(&iothread->watched, VB_DOING_TURN);
}

/* One turn: pop everything, submit once, complete what is done, notify once a port. */
static bool turn(struct vb_iothread *iothread)
{
    bool progress = false;

    for (struct vb_port *port = iothread->ports; port; port = port->next)
        progress |= vb_port_turn(port);
    if (progress)
        publish_all(iothread);
    submit(iothread);
    if (reap(iothread)) {
        progress = true;
        submit(iothread);
        publish_all(iothread);
    }
    return progress;
}

/* `now` is the clock, read by the caller, who need not read it for every turn. */
static bool take_turn(struct vb_iothread *iothread, uint64_t now)
{
    bool progress;

    pthread_mutex_lock(&iothread->lock);
    vb_inbox_run(iothread);
    iothread->now = now;
    vb_watched_step(&iothread->watched);
    progress = turn(iothread);
    pthread_mutex_unlock(&iothread->lock);
    return progress;
}

/* The descriptors that end a sleep: wake_fd, io, then the ports'. */
struct sleeper {
    struct pollfd *fds;
    nfds_t count;
    nfds_t capacity;
};

static bool collect(struct sleeper *sleeper, struct vb_iothread *iothread)
{
    nfds_t wanted = 2 + iothread->port_count;

    if (wanted > sleeper->capacity) {
        struct pollfd *grown = realloc(sleeper->fds, wanted * sizeof(*grown));

        if (!grown)
            return false;
        sleeper->fds = grown;
        sleeper->capacity = wanted;
    }
    sleeper->fds[0] = (struct pollfd){.fd = iothread->wake_fd, .events = POLLIN};
    sleeper->fds[1] = (struct pollfd){.fd = iothread->io->poll_fd, .events = POLLIN};
    sleeper->count = wanted;
    return true;
}

/* Of a port that takes nothing now nothing is heard, not even that a peer has gone. */
static void choose_events(struct sleeper *sleeper, const struct vb_iothread *iothread)
{
    struct pollfd *fd = &sleeper->fds[2];

    for (struct vb_port *port = iothread->ports; port; port = port->next, fd++) {
        short events = (vb_port_takes(port) ? POLLIN : 0) | (port->wants_room ? POLLOUT : 0);

        *fd = (struct pollfd){.fd = events ? port->wake_fd : -1, .events = events};
    }
}

/* Prepare to sleep: have all ports wake us. The time-out in ms, -1: none; -2: don't sleep. */
static int arm(struct sleeper *sleeper, struct vb_iothread *iothread)
{
    int timeout = -1;

    atomic_store(&iothread->asleep, true);
    if (atomic_load(&iothread->inbox))
        return -2;
    for (struct vb_port *port = iothread->ports; port; port = port->next) {
        if (port->pieces)
            return -2;
        if (vb_port_looked_for(port))
            continue;
        if (vb_port_arm(port))
            return -2;
        if (port->wake_fd < 0 && !port->holds && !port->broken)
            timeout = POLLED_PORT_MS;
    }
    if (iothread->io->vtable->arm(iothread->io, true))
        return -2;
    if (iothread->io->unsubmitted)
        timeout = POLLED_PORT_MS;
    if (iothread->ports_changed) {
        if (!collect(sleeper, iothread))
            return POLLED_PORT_MS;
        iothread->ports_changed = false;
    }
    choose_events(sleeper, iothread);
    return timeout;
}

static void clear(const struct sleeper *sleeper, struct vb_iothread *iothread)
{
    const struct pollfd *fd = &sleeper->fds[2];

    if (sleeper->fds[0].revents & POLLIN)
        eventfd_read(iothread->wake_fd, &(eventfd_t){0});
    for (struct vb_port *port = iothread->ports; port; port = port->next, fd++) {
        if (fd->revents & POLLIN && port->vtable->woken)
            port->vtable->woken(port);
        if (fd->revents & POLLOUT) {
            port->vtable->publish(port);
            vb_port_show(port);
        }
    }
}

static void sleep_until_work(struct sleeper *sleeper, struct vb_iothread *iothread)
{
    int timeout, ready = 0;

    pthread_mutex_lock(&iothread->lock);
    timeout = arm(sleeper, iothread);
    pthread_mutex_unlock(&iothread->lock);
    if (timeout != -2) {
        vb_watched_does(&iothread->watched, VB_DOING_SLEEP);
        ready = poll(sleeper->fds, sleeper->count, timeout);
        vb_watched_wakes(&iothread->watched);
    }
    atomic_store(&iothread->asleep, false);
    pthread_mutex_lock(&iothread->lock);
    vb_inbox_run(iothread);
    iothread->io->vtable->arm(iothread->io, false);
    /* A port that has gone meanwhile took its descriptor with it. */
    if (iothread->ports_changed)
        eventfd_read(iothread->wake_fd, &(eventfd_t){0});
    else if (ready > 0)
        clear(sleeper, iothread);
    pthread_mutex_unlock(&iothread->lock);
}

/* Look on for the polling window; true where work came. */
static bool poll_for_work(struct vb_iothread *iothread, uint64_t idle_since, uint64_t window)
{
    uint64_t now = idle_since;

    while (now - idle_since < window) {
        for (int i = 0; i < 16; i++) {
            if (take_turn(iothread, now))
                return true;
            relax();
        }
        if (atomic_load_explicit(&iothread->stopping, memory_order_relaxed))
            return false;
        now = vb_now();
    }
    return false;
}

static void run(struct vb_iothread *iothread)
{
    struct sleeper sleeper = {0};

    while (!atomic_load(&iothread->stopping)) {
        struct vb_poll *window;
        uint64_t idle_since;

        do
            idle_since = vb_now();
        while (take_turn(iothread, idle_since));
        window = iothread->io->in_flight ? &iothread->poll_io : &iothread->poll_guests;
        if (!poll_for_work(iothread, idle_since, vb_poll_window(window)))
            sleep_until_work(&sleeper, iothread);
        vb_poll_learn(window, vb_now() - idle_since);
    }
    free(sleeper.fds);
}

static void *start_thread(void *argument)
{
    struct start *start = argument;
    struct vb_iothread *iothread = start->iothread;

    prctl(PR_SET_NAME, iothread->config.name);
    iothread->thread_id = (int)syscall(SYS_gettid);
    start->error = EPERM;
    if (!iothread->config.no_uring)
        iothread->io = vb_io_open_uring(URING_ENTRIES, iothread->config.max_batch, &start->error);
    iothread->uses_uring = iothread->io != NULL;
    if (!iothread->io)
        iothread->io = vb_io_open_pool(iothread->config.pool_threads, &start->error);
    if (!iothread->io) {
        sem_post(&start->done);
        return NULL;
    }
    start->error = 0;
    sem_post(&start->done);
    vb_watchdog_add(&iothread->watched);
    run(iothread);
    vb_inbox_run(iothread);
    vb_watchdog_remove(&iothread->watched);
    vb_notify_end();
    /* An io_uring of SINGLE_ISSUER kind is closed where it was opened. */
    iothread->io->vtable->close(iothread->io);
    return NULL;
}

static void set_poll(struct vb_iothread *iothread, uint64_t max_ns, uint64_t grow, uint64_t shrink)
{
    vb_poll_set(&iothread->poll_guests, max_ns, grow, shrink);
    vb_poll_set(&iothread->poll_io, max_ns, grow, shrink);
}

struct vb_iothread *vb_iothread_new(const struct vb_iothread_config *config, int *error)
{
    struct vb_iothread *iothread = calloc(1, sizeof(*iothread));
    struct start start = {.iothread = iothread};
    sigset_t all, old;

    if (!iothread) {
        *error = ENOMEM;
        return NULL;
    }
    iothread->config = *config;
    iothread->upcall_fd = config->upcall_fd;
    iothread->fetched_end = &iothread->fetched;
    iothread->ports_changed = true;
    set_poll(iothread, config->poll_max_ns, config->poll_grow, config->poll_shrink);
    pthread_mutex_init(&iothread->lock, NULL);
    pthread_mutex_init(&iothread->news_lock, NULL);
    iothread->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (iothread->wake_fd < 0) {
        *error = errno;
        free(iothread);
        return NULL;
    }
    sem_init(&start.done, 0, 0);
    /* Signals are the main thread's, but for those that an access to memory raises. */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    *error = pthread_create(&iothread->thread, NULL, start_thread, &start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!*error) {
        while (sem_wait(&start.done) && errno == EINTR)
            ;
        *error = start.error;
        if (*error)
            pthread_join(iothread->thread, NULL);
    }
    sem_destroy(&start.done);
    if (*error) {
        close(iothread->wake_fd);
        free(iothread);
        return NULL;
    }
    return iothread;
}

void vb_iothread_free(struct vb_iothread *iothread)
{
    atomic_store(&iothread->stopping, true);
    eventfd_write(iothread->wake_fd, 1);
    pthread_join(iothread->thread, NULL);
    close(iothread->wake_fd);
    pthread_mutex_destroy(&iothread->lock);
    pthread_mutex_destroy(&iothread->news_lock);
    free(iothread);
}

void vb_iothread_report(const struct vb_iothread *iothread, struct vb_report *report)
{
    const struct vb_watched *watched = &iothread->watched;

    report->doing = __atomic_load_n(&watched->doing, __ATOMIC_ACQUIRE);
    report->steps = __atomic_load_n(&watched->steps, __ATOMIC_RELAXED);
    report->port = (uintptr_t)__atomic_load_n(&watched->port, __ATOMIC_RELAXED);
    report->offset = __atomic_load_n(&watched->offset, __ATOMIC_RELAXED);
    report->length = __atomic_load_n(&watched->length, __ATOMIC_RELAXED);
}

int vb_iothread_uses_uring(struct vb_iothread *iothread)
{
    return iothread->uses_uring;
}

int vb_iothread_thread_id(struct vb_iothread *iothread)
{
    return iothread->thread_id;
}

void vb_iothread_set_poll(struct vb_iothread *iothread, uint64_t max_ns, uint64_t grow,
                          uint64_t shrink)
{
    set_poll(iothread, max_ns, grow, shrink);
    vb_iothread_wake(iothread);
}
