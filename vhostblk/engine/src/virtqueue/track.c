/* SPDX-License-Identifier: Apache-2.0 */
/* Beginning to note requests in flight, with those that an earlier process has left. */
#include "queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int vb_queue_track(struct vb_queue *queue, uint64_t record, uint64_t counter, uint32_t left_count,
                   const uint16_t *left)
{
    uint32_t size = queue->ring.size;
    uint16_t *heads = calloc(2 * size, sizeof(*heads));
    uint16_t *mine = heads + size;

    if (!heads)
        return -ENOMEM;
    memcpy(mine, left, left_count * sizeof(*left));
    queue->inflight = (struct vb_inflight){
        .region = (struct vb_inflight_region *)(uintptr_t)record,
        .counter = counter,
        .done = heads,
        .mask = (uint16_t)(size - 1),
        .left = mine,
        .left_count = (uint16_t)left_count,
    };
    return 0;
}

static void limit_to_left(struct vb_command *command)
{
    vb_queue_of(command->port)->left_only = true;
}

void vb_queue_limit_to_left(struct vb_queue *queue)
{
    vb_port_tell(&queue->port, queue->port.iothread, limit_to_left, 0, NULL);
}

uint32_t vb_queue_left_count(struct vb_queue *queue)
{
    uint16_t taken = __atomic_load_n(&queue->inflight.left_taken, __ATOMIC_ACQUIRE);

    return vb_port_broken(&queue->port) ? 0 : queue->inflight.left_count - taken;
}

int vb_queue_track_packed(struct vb_queue *queue, uint64_t record, uint64_t counter,
                          uint32_t entries, const uint16_t *links, uint16_t free_head,
                          uint32_t left_count, const struct vb_packed_left *left,
                          const struct vb_packed_desc *descs)
{
    uint32_t size = queue->ring.size;
    struct vb_inflight_packed *inflight = &queue->packed_inflight;
    size_t left_bytes = left_count * sizeof(*left), desc_bytes = queue->ring.taken * sizeof(*descs);
    uint16_t *numbers = calloc(entries + 2 * size, sizeof(*numbers));
    uint16_t *done = calloc(size, sizeof(*done));
    char *copy = malloc(left_bytes + desc_bytes + 1);

    if (!numbers || !done || !copy) {
        free(numbers);
        free(done);
        free(copy);
        return -ENOMEM;
    }
    memcpy(numbers, links, entries * sizeof(*numbers));
    memset(numbers + entries, 0xFF, size * sizeof(*numbers)); /* VB_NO_ENTRY */
    if (left_count) {
        memcpy(copy, left, left_bytes);
        memcpy(copy + left_bytes, descs, desc_bytes);
    }
    *inflight = (struct vb_inflight_packed){
        .region = (struct vb_inflight_packed_region *)(uintptr_t)record,
        .counter = counter,
        .links = numbers,
        .first = numbers + entries,
        .last = numbers + entries + size,
        .free_head = free_head,
        .old_free_head = free_head,
        .old_places = vb_inflight_packed_places(&queue->ring, true),
    };
    queue->inflight = (struct vb_inflight){
        .done = done,
        .mask = UINT16_MAX, /* no more are unpublished than the ring has descriptors */
        .left_count = (uint16_t)left_count,
        .packed_left = (const struct vb_packed_left *)copy,
        .left_descs = (const struct vb_packed_desc *)(copy + left_bytes),
    };
    for (uint32_t i = 0; i < left_count; i++) {
        inflight->first[left[i].id] = left[i].first;
        inflight->last[left[i].id] = left[i].last;
    }
    return 0;
}
