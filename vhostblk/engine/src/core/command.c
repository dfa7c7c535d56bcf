/* SPDX-License-Identifier: Apache-2.0 */
#include "command.h"

#include <stdlib.h>

#include "iothread.h"
#include "port.h"

/* Put a command into the inbox, newest first, and see that it is looked at. */
static void put(struct vb_iothread *iothread, struct vb_command *command)
{
    struct vb_command *first = atomic_load_explicit(&iothread->inbox, memory_order_relaxed);

    if (command->port)
        __atomic_fetch_add(&command->port->pending, 1, __ATOMIC_RELAXED);
    do
        command->next = first;
    while (!atomic_compare_exchange_strong(&iothread->inbox, &first, command));
    /* The iothread says that it is about to sleep, and then looks into the inbox. */
    if (atomic_load(&iothread->asleep))
        vb_iothread_wake(iothread);
}

void vb_inbox_run(struct vb_iothread *iothread)
{
    struct vb_command *newest, *command = NULL;

    if (!atomic_load_explicit(&iothread->inbox, memory_order_relaxed))
        return;
    newest = atomic_exchange(&iothread->inbox, NULL);
    while (newest) { /* the oldest is the first to run */
        struct vb_command *older = newest->next;

        newest->next = command;
        command = newest;
        newest = older;
    }
    iothread->now = vb_now();
    while (command) {
        struct vb_command *next = command->next;

        command->run(command);
        if (command->port) { /* commands count as in flight, so first they don't */
            __atomic_fetch_sub(&command->port->pending, 1, __ATOMIC_SEQ_CST);
            vb_port_show(command->port);
            if (!command->quiet || command->port->holds ||
                __atomic_exchange_n(&command->port->settle_awaited, false, __ATOMIC_SEQ_CST))
                vb_port_news(command->port);
        }
        free(command);
        command = next;
    }
}

static void begin_visit(struct vb_iothread *iothread)
{
    iothread->visited = true;
    vb_inbox_run(iothread);
    iothread->now = vb_now();
}

bool vb_iothread_visit(struct vb_iothread *iothread)
{
    if (pthread_mutex_trylock(&iothread->lock))
        return false;
    begin_visit(iothread);
    return true;
}

void vb_iothread_visit_waiting(struct vb_iothread *iothread)
{
    pthread_mutex_lock(&iothread->lock);
    begin_visit(iothread);
}

void vb_iothread_visit_end(struct vb_iothread *iothread, bool work)
{
    iothread->visited = false;
    pthread_mutex_unlock(&iothread->lock);
    if (work && atomic_load(&iothread->asleep))
        vb_iothread_wake(iothread);
}

static void run_here(const struct vb_command *command)
{
    struct vb_command mine = *command;

    mine.run(&mine);
    if (mine.port)
        vb_port_show(mine.port);
    vb_iothread_visit_end(mine.iothread, !mine.asleep);
}

bool vb_command_give(const struct vb_command *command)
{
    struct vb_iothread *iothread = command->iothread;
    struct vb_command *copy;

    if (vb_iothread_visit(iothread)) {
        run_here(command);
        return true;
    }
    copy = malloc(sizeof(*copy));
    if (!copy) { /* nothing is left but to wait for the end of the turn */
        vb_iothread_visit_waiting(iothread);
        run_here(command);
        return true;
    }
    *copy = *command;
    put(iothread, copy);
    return false;
}
