/* SPDX-License-Identifier: Apache-2.0 */
#include "upcall.h"

#include <string.h>

void vb_slot_go_up(struct vb_slot *slot)
{
    struct vb_queue *queue = slot->queue;
    struct vb_iothread *iothread = queue->iothread;

    slot->state = VB_SLOT_UP;
    slot->next_up = NULL;
    *iothread->upcalls_end = slot;
    iothread->upcalls_end = &slot->next_up;
    queue->stats.upcalls++;
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
    for (uint32_t i = 0; i < iothread->queue_count; i++) {
        struct vb_queue *queue = iothread->queues[i];

        if (queue->map)
            continue;
        unmapped++;
        vb_queue_take(queue);
        vb_queue_publish(queue);
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
    for (uint32_t i = 0; i < iothread->queue_count; i++) {
        struct vb_queue *queue = iothread->queues[i];

        if (!queue->map)
            more |= vb_queue_arm(queue) || queue->config.kick_fd < 0;
    }
    if (more)
        vb_iothread_leave(iothread);
    else
        vb_iothread_leave_asleep(iothread);
}

uint32_t vb_upcalls_take(struct vb_iothread *iothread, uint32_t limit, struct vb_request *records,
                         struct vb_queue **queue, uint32_t iov_limit, uint64_t *iovs)
{
    uint32_t taken = 0, used = 0;

    vb_iothread_enter(iothread);
    iothread->upcall_signalled = false;
    while (taken < limit && iothread->upcalls) {
        struct vb_slot *slot = iothread->upcalls;
        uint32_t count = slot->request.iov_count;

        if (count > iov_limit - used || (taken && slot->queue != *queue))
            break;
        *queue = slot->queue;
        memcpy(iovs + 2 * used, slot->iovs, count * sizeof(*slot->iovs));
        records[taken] = slot->request;
        records[taken].iov_first = used;
        taken++;
        used += count;
        iothread->upcalls = slot->next_up;
        if (!iothread->upcalls)
            iothread->upcalls_end = &iothread->upcalls;
    }
    vb_iothread_leave_asleep(iothread);
    return taken;
}

void vb_queue_complete(struct vb_queue *queue, uint32_t n, const uint16_t *heads,
                       const uint8_t *statuses, const uint32_t *written)
{
    bool waited_for;

    vb_iothread_enter(queue->iothread);
    queue->iothread->now = vb_now();
    waited_for = queue->holds || vb_queue_full(queue);
    for (uint32_t i = 0; i < n; i++) {
        struct vb_slot *slot = &queue->slots[heads[i]];

        if (heads[i] >= queue->ring.size || slot->state != VB_SLOT_UP)
            continue;
        if (statuses)
            vb_slot_complete(slot, statuses[i], written[i]);
        else
            vb_slot_complete(slot, VB_S_OK, slot->request.type == VB_T_IN ? slot->request.length : 0);
    }
    vb_queue_publish(queue);
    if (waited_for)
        vb_iothread_leave(queue->iothread);
    else
        vb_iothread_leave_asleep(queue->iothread);
}
