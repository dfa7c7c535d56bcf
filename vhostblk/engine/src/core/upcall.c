/* SPDX-License-Identifier: Apache-2.0 */
#include "upcall.h"

#include <stdlib.h>
#include <string.h>

#include "iothread.h"

void vb_task_go_up(struct vb_task *task)
{
    struct vb_iothread *iothread = task->port->iothread;
    struct vb_task *first = atomic_load_explicit(&iothread->upcalls, memory_order_relaxed);

    task->state = VB_TASK_UP;
    task->port->stats.upcalls++;
    do
        task->next = first;
    while (!atomic_compare_exchange_strong(&iothread->upcalls, &first, task));
    if (!first && !atomic_load(&iothread->looked_for))
        vb_iothread_signal(iothread);
}

/* Announce what went up meanwhile, and all from now on. */
static void announce_again(struct vb_iothread *iothread)
{
    atomic_store(&iothread->looked_for, false);
    if (atomic_load(&iothread->upcalls))
        vb_iothread_signal(iothread);
}

uint32_t vb_upcalls_look(struct vb_iothread *iothread)
{
    uint32_t unmapped = 0;

    atomic_store(&iothread->looked_for, true);
    if (!vb_iothread_visit(iothread))
        return 1; /* there may be some */
    for (struct vb_port *port = iothread->ports; port; port = port->next) {
        if (port->map)
            continue;
        unmapped++;
        vb_port_begin_turn(port);
        vb_port_sweep(port);
        port->vtable->publish(port);
        vb_port_show(port);
    }
    vb_iothread_visit_end(iothread, false);
    if (!unmapped)
        announce_again(iothread);
    return unmapped;
}

static void look_no_more(struct vb_command *command)
{
    for (struct vb_port *port = command->iothread->ports; port; port = port->next)
        if (!port->map && (vb_port_arm(port) || port->wake_fd < 0))
            command->asleep = false;
}

void vb_upcalls_look_no_more(struct vb_iothread *iothread)
{
    struct vb_command command = {.run = look_no_more, .iothread = iothread, .asleep = true};

    announce_again(iothread);
    vb_command_give(&command);
}

/* Append what has gone up to what Python has of it; the newest is the first. */
static void fetch(struct vb_iothread *iothread)
{
    struct vb_task *newest = atomic_exchange(&iothread->upcalls, NULL), *oldest = NULL;

    while (newest) {
        struct vb_task *older = newest->next;

        newest->next = oldest;
        oldest = newest;
        newest = older;
    }
    *iothread->fetched_end = oldest;
    while (*iothread->fetched_end)
        iothread->fetched_end = &(*iothread->fetched_end)->next;
}

uint32_t vb_upcalls_take(struct vb_iothread *iothread, uint32_t limit, struct vb_upcall *records,
                         struct vb_port **port, uint32_t iov_limit, uint64_t *iovs)
{
    uint32_t taken = 0, used = 0;

    fetch(iothread);
    while (taken < limit && iothread->fetched) {
        struct vb_task *task = iothread->fetched;
        uint32_t count = task->iov_count;

        if (count > iov_limit - used || (taken && task->port != *port))
            break;
        *port = task->port;
        memcpy(iovs + 2 * used, task->iovs, count * sizeof(*task->iovs));
        records[taken++] = (struct vb_upcall){
            .offset = task->offset,
            .length = task->length,
            .iov_first = used,
            .iov_count = count,
            .tag = task->tag,
            .kind = task->kind,
            .flags = task->flags,
        };
        used += count;
        iothread->fetched = task->next;
        if (!iothread->fetched)
            iothread->fetched_end = &iothread->fetched;
    }
    return taken;
}

/* Answers on their way to an iothread. */
struct answers {
    uint32_t count;
    bool in_full;
    struct answer {
        uint16_t tag;
        uint8_t status;
        uint32_t bytes;
    } answers[];
};

static void complete_one(struct vb_port *port, uint16_t tag, bool in_full, uint8_t status,
                         uint32_t bytes)
{
    struct vb_task *task = port->vtable->find(port, tag);

    if (!task || task->state != VB_TASK_UP)
        return;
    if (in_full)
        task->done(task, 0, task->kind == VB_TASK_READ ? task->length : 0);
    else
        port->vtable->complete(port, task, status, bytes);
}

static void complete_all(struct vb_command *command)
{
    struct vb_port *port = command->port;
    struct answers *answers = command->pointer;

    for (uint32_t i = 0; i < answers->count; i++) {
        const struct answer *answer = &answers->answers[i];

        complete_one(port, answer->tag, answers->in_full, answer->status, answer->bytes);
    }
    free(answers);
    port->vtable->publish(port);
}

/* Complete them in the iothread's place. */
static void complete_here(struct vb_port *port, uint32_t n, const uint16_t *tags,
                          const uint8_t *statuses, const uint32_t *bytes)
{
    bool waited_for = port->holds || vb_port_full(port);

    for (uint32_t i = 0; i < n; i++)
        complete_one(port, tags[i], !statuses, statuses ? statuses[i] : 0, bytes ? bytes[i] : 0);
    port->vtable->publish(port);
    vb_port_show(port);
    vb_iothread_visit_end(port->iothread, waited_for);
}

void vb_port_complete(struct vb_port *port, uint32_t n, const uint16_t *tags,
                      const uint8_t *statuses, const uint32_t *bytes)
{
    struct answers *answers;

    if (vb_iothread_visit(port->iothread)) {
        complete_here(port, n, tags, statuses, bytes);
        return;
    }
    answers = malloc(sizeof(*answers) + n * sizeof(*answers->answers));
    if (!answers) { /* nothing is left but to wait for the end of the turn */
        vb_iothread_visit_waiting(port->iothread);
        complete_here(port, n, tags, statuses, bytes);
        return;
    }
    answers->count = n;
    answers->in_full = !statuses;
    for (uint32_t i = 0; i < n; i++)
        answers->answers[i] = (struct answer){
            .tag = tags[i],
            .status = statuses ? statuses[i] : 0,
            .bytes = bytes ? bytes[i] : 0,
        };
    vb_port_tell(port, port->iothread, complete_all, 0, answers);
}
