/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "port.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "iothread.h"
#include "pieces.h"

bool vb_port_init(struct vb_port *port, const struct vb_port_vtable *vtable,
                  struct vb_iothread *iothread, int wake_fd)
{
    port->vtable = vtable;
    port->iothread = iothread;
    port->wake_fd = wake_fd < 0 ? -1 : fcntl(wake_fd, F_DUPFD_CLOEXEC, 0);
    port->holds = 1;
    port->file = VB_FILE_UNTRIED;
    port->drop.opcode = VB_IO_DROP;
    return wake_fd < 0 || port->wake_fd >= 0;
}

void vb_port_fini(struct vb_port *port)
{
    if (port->wake_fd >= 0)
        close(port->wake_fd);
}

/* Whether the kernel has a file open for us. */
static bool has_file(const struct vb_port *port)
{
    return port->file >= 0 || port->file == VB_FILE_DROPPED;
}

void vb_port_show(struct vb_port *port)
{
    uint32_t busy = port->in_flight + (port->holds && has_file(port));

    if (busy == port->shown)
        return;
    __atomic_store_n(&port->shown, busy, __ATOMIC_RELEASE);
    if (!busy && port->holds)
        vb_port_news(port);
}

/* A port that is held and idle keeps no file open: its node may be about to close it. Only the
 * iothread can do that (the io's rule), and the kernel may take a while: until then the file counts as
 * in flight. */
static void drop_file(struct vb_port *port)
{
    struct vb_io *io = port->iothread->io;

    if (port->file < 0 || port->mapped_in_flight ||
        !(port->file_stale || (port->holds && !port->in_flight)))
        return;
    port->file_stale = false;
    if (io->vtable->drop_file(io, port->file)) {
        port->file = VB_FILE_DROPPED;
    } else { /* nothing else of this turn may show that the port is idle */
        port->file = VB_FILE_UNTRIED;
        vb_port_show(port);
    }
}

bool vb_port_looked_for(const struct vb_port *port)
{
    return !port->map &&
           atomic_load_explicit(&port->iothread->looked_for, memory_order_relaxed);
}

bool vb_port_turn(struct vb_port *port)
{
    bool progress;

    drop_file(port);
    vb_port_begin_turn(port);
    progress = vb_pieces_do(port);
    if (!vb_port_looked_for(port))
        progress |= vb_port_sweep(port);
    return progress;
}

void vb_port_file_gone(struct vb_port *port)
{
    port->file = VB_FILE_UNTRIED;
}

void vb_port_break(struct vb_port *port, const char *reason)
{
    __atomic_store_n(&port->broken, reason, __ATOMIC_RELEASE);
    vb_port_news(port);
}

void vb_port_note_error(struct vb_port *port, const struct vb_task *task, int error)
{
    __atomic_store_n(&port->errors[task->kind != VB_TASK_READ], error, __ATOMIC_RELEASE);
    vb_port_news(port);
}

/* News. The lock is held for a few instructions at a time. */

void vb_port_news(struct vb_port *port)
{
    struct vb_iothread *iothread = port->iothread;
    bool first;

    pthread_mutex_lock(&iothread->news_lock);
    first = !iothread->news;
    if (!port->has_news) {
        port->has_news = true;
        port->next_news = iothread->news;
        iothread->news = port;
    }
    pthread_mutex_unlock(&iothread->news_lock);
    if (first)
        vb_iothread_signal(iothread);
}

uint32_t vb_news_take(struct vb_iothread *iothread, struct vb_port **ports, uint32_t limit)
{
    uint32_t count = 0;

    pthread_mutex_lock(&iothread->news_lock);
    while (count < limit && iothread->news) {
        struct vb_port *port = iothread->news;

        iothread->news = port->next_news;
        port->has_news = false;
        ports[count++] = port;
    }
    pthread_mutex_unlock(&iothread->news_lock);
    return count;
}

static void forget_news(struct vb_port *port)
{
    struct vb_iothread *iothread = port->iothread;

    pthread_mutex_lock(&iothread->news_lock);
    for (struct vb_port **link = &iothread->news; *link; link = &(*link)->next_news)
        if (*link == port) {
            *link = port->next_news;
            break;
        }
    pthread_mutex_unlock(&iothread->news_lock);
}

/* Calls from Python, and what they do between two turns. */

static void open_port(struct vb_command *command)
{
    struct vb_iothread *iothread = command->iothread;
    struct vb_port *port = command->port;

    port->opened = true;
    port->previous = NULL;
    port->next = iothread->ports;
    if (port->next)
        port->next->previous = port;
    iothread->ports = port;
    iothread->port_count++;
    iothread->ports_changed = true;
}

void vb_port_open(struct vb_port *port)
{
    vb_port_tell(port, port->iothread, open_port, 0, NULL);
}

/* Take a port off its iothread's list. */
static void leave(struct vb_port *port)
{
    struct vb_iothread *iothread = port->iothread;

    *(port->previous ? &port->previous->next : &iothread->ports) = port->next;
    if (port->next)
        port->next->previous = port->previous;
    iothread->port_count--;
    iothread->ports_changed = true;
}

static void close_port(struct vb_command *command)
{
    struct vb_port *port = command->port;

    if (port->opened) /* else setting it up has failed */
        leave(port);
    forget_news(port);
    port->vtable->destroy(port);
    command->port = NULL;
}

void vb_port_close(struct vb_port *port)
{
    vb_port_tell(port, port->iothread, close_port, 0, NULL);
}

static void hold(struct vb_command *command)
{
    command->port->holds += command->number;
}

void vb_port_hold(struct vb_port *port)
{
    vb_port_tell(port, port->iothread, hold, 1, NULL);
}

void vb_port_release(struct vb_port *port)
{
    vb_port_tell(port, port->iothread, hold, -1, NULL);
}

uint32_t vb_port_pending(struct vb_port *port)
{
    return __atomic_load_n(&port->pending, __ATOMIC_ACQUIRE);
}

uint32_t vb_port_in_flight(struct vb_port *port)
{
    uint32_t pending = vb_port_pending(port);

    return pending + __atomic_load_n(&port->shown, __ATOMIC_ACQUIRE);
}

uint32_t vb_port_mapped_in_flight(struct vb_port *port)
{
    uint32_t pending = vb_port_pending(port);

    return pending + __atomic_load_n(&port->mapped_in_flight, __ATOMIC_ACQUIRE) +
           (__atomic_load_n(&port->file_stale, __ATOMIC_RELAXED) ||
            __atomic_load_n(&port->file, __ATOMIC_RELAXED) == VB_FILE_DROPPED);
}

const char *vb_port_broken(struct vb_port *port)
{
    return __atomic_load_n(&port->broken, __ATOMIC_ACQUIRE);
}

int vb_port_take_error(struct vb_port *port, int write)
{
    return __atomic_exchange_n(&port->errors[write != 0], 0, __ATOMIC_ACQ_REL);
}

static void set_map(struct vb_command *command)
{
    struct vb_port *port = command->port;

    port->map = command->pointer;
    if (port->file >= 0)
        port->file_stale = true;
    else if (port->file == VB_FILE_NONE)
        port->file = VB_FILE_UNTRIED;
}

void vb_port_set_map(struct vb_port *port, struct vb_extent_map *map)
{
    vb_port_tell(port, port->iothread, set_map, 0, map);
}

static void settle(struct vb_command *command)
{
    struct vb_port *port = command->port;
    uint32_t count = port->phase_in_flight[port->phase];

    port->settling = count > 0;
    __atomic_store_n(&port->phase, port->phase ^ 1, __ATOMIC_RELEASE);
}

void vb_port_settle(struct vb_port *port)
{
    vb_port_tell(port, port->iothread, settle, 0, NULL);
}

static uint32_t unsettled(struct vb_port *port)
{
    uint32_t pending = __atomic_load_n(&port->pending, __ATOMIC_SEQ_CST);
    uint8_t former = __atomic_load_n(&port->phase, __ATOMIC_ACQUIRE) ^ 1;

    return pending + __atomic_load_n(&port->phase_in_flight[former], __ATOMIC_ACQUIRE);
}

uint32_t vb_port_unsettled(struct vb_port *port)
{
    if (!unsettled(port))
        return 0;
    /* Then look again: whoever has run a command meanwhile has not seen that we wait. */
    __atomic_store_n(&port->settle_awaited, true, __ATOMIC_SEQ_CST);
    return unsettled(port);
}

const struct vb_stats *vb_port_stats(struct vb_port *port)
{
    return &port->stats;
}
