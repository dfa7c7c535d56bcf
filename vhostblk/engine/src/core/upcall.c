/* SPDX-License-Identifier: Apache-2.0 */
#include "upcall.h"

#include <string.h>

#include "iothread.h"

void vb_task_go_up(struct vb_task *task)
{
    struct vb_iothread *iothread = task->port->iothread;

    task->state = VB_TASK_UP;
    task->next = NULL;
    *iothread->upcalls_end = task;
    iothread->upcalls_end = &task->next;
    task->port->stats.upcalls++;
    if (!iothread->looked_for)
        vb_iothread_signal(iothread);
}

/* Announce what went up meanwhile, and all from now on. */
static void announce_again(struct vb_iothread *iothread)
{
    iothread->looked_for = false;
    if (iothread->upcalls)
        vb_iothread_signal(iothread);
}

uint32_t vb_upcalls_look(struct vb_iothread *iothread)
{
    uint32_t unmapped = 0;

    vb_iothread_enter(iothread);
    iothread->now = vb_now();
    iothread->looked_for = true;
    for (uint32_t i = 0; i < iothread->port_count; i++) {
        struct vb_port *port = iothread->ports[i];

        if (port->map)
            continue;
        unmapped++;
        vb_port_sweep(port);
        port->vtable->publish(port);
    }
    if (!unmapped)
        announce_again(iothread);
    vb_iothread_leave_asleep(iothread);
    return unmapped;
}

void vb_upcalls_look_no_more(struct vb_iothread *iothread)
{
    bool more = false;

    vb_iothread_enter(iothread);
    announce_again(iothread);
    for (uint32_t i = 0; i < iothread->port_count; i++) {
        struct vb_port *port = iothread->ports[i];

        if (!port->map)
            more |= vb_port_arm(port) || port->wake_fd < 0;
    }
    if (more)
        vb_iothread_leave(iothread);
    else
        vb_iothread_leave_asleep(iothread);
}

uint32_t vb_upcalls_take(struct vb_iothread *iothread, uint32_t limit, struct vb_upcall *records,
                         struct vb_port **port, uint32_t iov_limit, uint64_t *iovs)
{
    uint32_t taken = 0, used = 0;

    vb_iothread_enter(iothread);
    iothread->upcall_signalled = false;
    while (taken < limit && iothread->upcalls) {
        struct vb_task *task = iothread->upcalls;
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
        iothread->upcalls = task->next;
        if (!iothread->upcalls)
            iothread->upcalls_end = &iothread->upcalls;
    }
    vb_iothread_leave_asleep(iothread);
    return taken;
}

void vb_port_complete(struct vb_port *port, uint32_t n, const uint16_t *tags,
                      const uint8_t *statuses, const uint32_t *bytes)
{
    bool waited_for;

    vb_iothread_enter(port->iothread);
    port->iothread->now = vb_now();
    waited_for = port->holds || vb_port_full(port);
    for (uint32_t i = 0; i < n; i++) {
        struct vb_task *task = port->vtable->find(port, tags[i]);

        if (!task || task->state != VB_TASK_UP)
            continue;
        if (statuses)
            port->vtable->complete(port, task, statuses[i], bytes[i]);
        else
            task->done(task, 0, task->kind == VB_TASK_READ ? task->length : 0);
    }
    port->vtable->publish(port);
    if (waited_for)
        vb_iothread_leave(port->iothread);
    else
        vb_iothread_leave_asleep(port->iothread);
}
