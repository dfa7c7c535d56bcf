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
    vb_iothread_signal(iothread);
}

uint32_t vb_upcalls_take(struct vb_iothread *iothread, uint32_t limit, struct vb_request *records,
                         struct vb_queue **queues, uint32_t iov_limit, uint64_t *iovs)
{
    uint32_t taken = 0, used = 0;

    vb_iothread_enter(iothread);
    iothread->upcall_signalled = false;
    while (taken < limit && iothread->upcalls) {
        struct vb_slot *slot = iothread->upcalls;
        uint32_t count = slot->request.iov_count;

        if (count > iov_limit - used)
            break;
        memcpy(iovs + 2 * used, slot->iovs, count * sizeof(*slot->iovs));
        records[taken] = slot->request;
        records[taken].iov_first = used;
        queues[taken++] = slot->queue;
        used += count;
        iothread->upcalls = slot->next_up;
        if (!iothread->upcalls)
            iothread->upcalls_end = &iothread->upcalls;
    }
    vb_iothread_leave(iothread);
    return taken;
}

void vb_queue_complete(struct vb_queue *queue, uint32_t n, const uint16_t *heads,
                       const uint8_t *statuses, const uint32_t *written)
{
    vb_iothread_enter(queue->iothread);
    queue->iothread->now = vb_now();
    for (uint32_t i = 0; i < n; i++) {
        struct vb_slot *slot = &queue->slots[heads[i] & (queue->ring.size - 1)];

        if (slot->state == VB_SLOT_UP)
            vb_slot_complete(slot, statuses[i], written[i]);
    }
    vb_queue_publish(queue);
    vb_iothread_leave(queue->iothread);
}
