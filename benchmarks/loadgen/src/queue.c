/* SPDX-License-Identifier: Apache-2.0
 *
 * A slot is a request's home: a fixed head descriptor, a header, a status byte and a data buffer.
 * Slots are prepared once and reused; a request costs a header and a ring entry. The descriptor
 * chain is rewritten only when the slot's operation changes, unless that is asked for.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "packed.h"
#include "queue.h"
#include "random.h"
#include "ring.h"

#define SECTOR_BITS 9
#define STATUS_UNSET 0xff

enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4, TYPE_WRITE_ZEROES = 13 };

struct lg_slot {
    uint64_t submitted;
    uint64_t block;
    uint32_t generation; /* that a write leaves or a read expects */
    uint8_t operation;
    uint8_t shape; /* the operation that the descriptors are made for */
    uint16_t length; /* how many these are */
};

/* 64 bytes, so that requests don't share cache lines. */
struct control {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
    uint64_t zeroes_sector;
    uint32_t zeroes_sectors;
    uint32_t zeroes_flags;
    _Atomic uint8_t status;
    uint8_t unused[31];
};

_Static_assert(sizeof(struct control) == 64, "control block");

static struct avail *avail_of(const struct lg_queue *queue)
{
    return (struct avail *)(queue->memory + queue->avail);
}

static struct used *used_of(const struct lg_queue *queue)
{
    return (struct used *)(queue->memory + queue->used);
}

static struct control *control_of(const struct lg_queue *queue, uint16_t slot)
{
    return (struct control *)(queue->memory + queue->control) + slot;
}

static uint8_t *data_of(const struct lg_queue *queue, uint16_t slot)
{
    return queue->memory + queue->data + slot * queue->data_stride;
}

static uint64_t guest_address(const struct lg_queue *queue, const void *host)
{
    return queue->guest_base + (uint64_t)((const uint8_t *)host - queue->memory);
}

static uint16_t chain_length(const struct lg_queue *queue)
{
    return (uint16_t)(queue->segments + 2);
}

static uint16_t head_of(const struct lg_queue *queue, uint16_t slot)
{
    return queue->indirect ? slot : (uint16_t)(slot * chain_length(queue));
}

/* Make a table's entries those of a packed ring. */
static void pack(struct desc *table, uint16_t count)
{
    for (uint16_t i = 0; i < count; i++) {
        struct desc desc = table[i];
        struct packed_desc *packed = (struct packed_desc *)&table[i];

        packed->id = 0;
        atomic_store_explicit(&packed->flags, desc.flags & DESC_F_WRITE, memory_order_relaxed);
    }
}

/* Have a split ring's descriptor of a slot point at its table. */
static void point_at_table(struct lg_queue *queue, uint16_t slot)
{
    struct desc *ring = (struct desc *)(queue->memory + queue->desc);
    const struct desc *table =
        (const struct desc *)(queue->memory + queue->tables) + slot * chain_length(queue);
    uint32_t length = (uint32_t)(queue->slot[slot].length * sizeof *table);

    ring[head_of(queue, slot)] =
        (struct desc){guest_address(queue, table), length, DESC_F_INDIRECT, 0};
}

/* Write the chain header, data, status for an operation, direct or into the indirect table. With a
 * packed ring it always is a table, which goes into the ring where requests are direct. */
static void write_chain(struct lg_queue *queue, uint16_t slot, uint8_t operation)
{
    struct control *control = control_of(queue, slot);
    struct desc *ring = (struct desc *)(queue->memory + queue->desc);
    uint16_t head = head_of(queue, slot);
    struct desc *table = ring;
    uint16_t at = head;

    if (queue->indirect || queue->packed) {
        table = (struct desc *)(queue->memory + queue->tables) + slot * chain_length(queue);
        at = 0;
    }
    uint16_t first = at;
    table[at++] = (struct desc){guest_address(queue, control), 16, DESC_F_NEXT, 0};
    if (operation == LG_READ || operation == LG_WRITE) {
        uint32_t length = queue->block_size / queue->segments;
        uint16_t flags = DESC_F_NEXT | (operation == LG_READ ? DESC_F_WRITE : 0);
        uint64_t address = guest_address(queue, data_of(queue, slot));
        for (uint16_t i = 0; i < queue->segments; i++)
            table[at++] = (struct desc){address + (uint64_t)i * length, length, flags, 0};
    } else if (operation == LG_WRITE_ZEROES) {
        uint64_t address = guest_address(queue, &control->zeroes_sector);
        table[at++] = (struct desc){address, 16, DESC_F_NEXT, 0};
    }
    table[at++] = (struct desc){guest_address(queue, (void *)&control->status), 1, DESC_F_WRITE, 0};
    for (uint16_t i = first; i + 1 < at; i++)
        table[i].next = (uint16_t)(i + 1);
    queue->slot[slot].length = (uint16_t)(at - first);
    if (queue->packed)
        pack(table, at);
    else if (queue->indirect)
        point_at_table(queue, slot);
}

int lg_queue_init(struct lg_queue *queue)
{
    queue->slot = calloc(queue->depth, sizeof *queue->slot);
    queue->free_slots = calloc(queue->depth, sizeof *queue->free_slots);
    if (!queue->slot || !queue->free_slots) {
        lg_queue_free(queue);
        return -1;
    }
    for (uint16_t i = 0; i < queue->depth; i++)
        queue->free_slots[i] = (uint16_t)(queue->depth - 1 - i);
    queue->free_count = queue->depth;
    queue->published_index = queue->avail_index;
    queue->used_index = queue->avail_index;
    queue->avail_wrap = queue->used_wrap = true;
    if (!queue->packed) {
        atomic_store(&used_of(queue)->idx, queue->used_index);
        atomic_store(&avail_of(queue)->idx, queue->avail_index);
    }
    queue_suppress_interrupts(queue);
    return 0;
}

void lg_queue_free(struct lg_queue *queue)
{
    free(queue->slot);
    free(queue->free_slots);
    queue->slot = NULL;
    queue->free_slots = NULL;
}

uint16_t queue_in_flight(const struct lg_queue *queue)
{
    return (uint16_t)(queue->depth - queue->free_count);
}

bool queue_exhausted(const struct lg_queue *queue)
{
    return queue->workload.limit && queue->started >= queue->workload.limit;
}

void queue_start(struct lg_queue *queue, uint64_t now)
{
    queue->random = random_start(queue->workload.seed);
    queue->position = 0;
    queue->started = 0;
    queue->due = now;
}

static uint8_t choose_operation(struct lg_queue *queue)
{
    const struct lg_workload *workload = &queue->workload;

    if (!workload->write_permille && !workload->zeroes_permille && !workload->flush_permille)
        return LG_READ;
    uint64_t dice = random_below(&queue->random, 1000);
    if (dice < workload->write_permille)
        return LG_WRITE;
    dice -= workload->write_permille;
    if (dice < workload->zeroes_permille)
        return LG_WRITE_ZEROES;
    dice -= workload->zeroes_permille;
    return dice < workload->flush_permille ? LG_FLUSH : LG_READ;
}

/* Choose a block; false if verification found only blocks with a request in flight. */
static bool choose_block(struct lg_queue *queue, uint64_t *block)
{
    const struct lg_workload *workload = &queue->workload;

    for (int attempt = 0; attempt < 8; attempt++) {
        uint64_t offset;
        if (workload->sequential) {
            offset = queue->position;
            if (queue->ledger &&
                queue->ledger->busy[workload->first_block + offset * workload->block_stride])
                return false;
            queue->position = offset + 1 < workload->blocks ? offset + 1 : 0;
        } else {
            offset = random_below(&queue->random, workload->blocks);
        }
        *block = workload->first_block + offset * workload->block_stride;
        if (!queue->ledger || !queue->ledger->busy[*block])
            return true;
    }
    return false;
}

/* Fill the buffer of a write; spoil that of a read, so that no earlier contents pass. */
static void prepare_verified(struct lg_queue *queue, uint16_t index)
{
    struct lg_ledger *ledger = queue->ledger;
    struct lg_slot *slot = &queue->slot[index];
    uint8_t *data = data_of(queue, index);
    uint32_t generation = ledger->generation[slot->block];

    ledger->busy[slot->block] = 1;
    if (slot->operation == LG_READ) {
        slot->generation = generation;
        for (uint32_t at = 0; at < queue->block_size; at += 64)
            memset(data + at, 0xa5, 8);
        return;
    }
    slot->generation = (generation & ~LG_GENERATION_ZEROES) + 1;
    if (slot->operation == LG_WRITE_ZEROES)
        slot->generation |= LG_GENERATION_ZEROES;
    else
        lg_pattern_fill(data, queue->block_size, ledger->seed, slot->block, slot->generation);
    ledger->pending[slot->block] = slot->generation;
}

static void prepare(struct lg_queue *queue, uint16_t index, uint8_t operation, uint64_t block)
{
    static const uint32_t types[] = {
        [LG_READ] = TYPE_IN,
        [LG_WRITE] = TYPE_OUT,
        [LG_FLUSH] = TYPE_FLUSH,
        [LG_WRITE_ZEROES] = TYPE_WRITE_ZEROES,
    };
    struct lg_slot *slot = &queue->slot[index];
    struct control *control = control_of(queue, index);
    uint64_t sectors = queue->block_size >> SECTOR_BITS;

    slot->operation = operation;
    slot->block = block;
    if (slot->shape != operation || (queue->rewrite && !queue->indirect)) {
        write_chain(queue, index, operation);
        slot->shape = operation;
    } else if (queue->rewrite) {
        point_at_table(queue, index);
    }
    control->type = types[operation];
    control->sector = operation == LG_READ || operation == LG_WRITE ? block * sectors : 0;
    atomic_store_explicit(&control->status, STATUS_UNSET, memory_order_relaxed);
    if (operation == LG_WRITE_ZEROES) {
        control->zeroes_sector = block * sectors;
        control->zeroes_sectors = (uint32_t)sectors;
        control->zeroes_flags = 0;
    }
    if (queue->ledger && operation != LG_FLUSH)
        prepare_verified(queue, index);
}

/* Show the device the new entries; kick it unless it says that it looks by itself. */
static bool publish_split(struct lg_queue *queue)
{
    struct avail *avail = avail_of(queue);
    struct used *used = used_of(queue);
    uint16_t before = queue->published_index;

    atomic_store_explicit(&avail->idx, queue->avail_index, memory_order_release);
    queue->published_index = queue->avail_index;
    atomic_thread_fence(memory_order_seq_cst);
    if (queue->event_idx) {
        uint16_t event =
            atomic_load_explicit(avail_event(used, queue->size), memory_order_relaxed);
        return passed_event(event, queue->avail_index, before);
    }
    return !(atomic_load_explicit(&used->flags, memory_order_relaxed) & USED_F_NO_NOTIFY);
}

static int publish(struct lg_queue *queue)
{
    if (queue->packed ? packed_publish(queue) : publish_split(queue)) {
        uint64_t one = 1;
        if (write(queue->kick_fd, &one, sizeof one) != sizeof one)
            return -1;
        queue->kicks++;
    }
    return 0;
}

/* Put a request in the ring. */
static void add(struct lg_queue *queue, uint16_t index)
{
    const struct packed_desc *table;

    if (!queue->packed) {
        struct avail *avail = avail_of(queue);

        avail->ring[queue->avail_index++ & (queue->size - 1)] = head_of(queue, index);
        return;
    }
    table = (const struct packed_desc *)(queue->memory + queue->tables) +
            index * chain_length(queue);
    if (queue->indirect) {
        uint32_t length = queue->slot[index].length * (uint32_t)sizeof *table;
        struct packed_desc desc = {guest_address(queue, table), length, 0, DESC_F_INDIRECT};

        packed_add(queue, &desc, 1, index);
    } else {
        packed_add(queue, table, queue->slot[index].length, index);
    }
}

int queue_submit(struct lg_worker *worker, uint32_t number, uint64_t now)
{
    struct lg_queue *queue = worker->queues[number];
    const struct lg_workload *workload = &queue->workload;
    int count = 0;

    while (queue->free_count && !queue_exhausted(queue)) {
        if (workload->interval_ns && queue->due > now)
            break;
        uint8_t operation = choose_operation(queue);
        uint64_t block = 0;
        if (operation != LG_FLUSH && !choose_block(queue, &block))
            break;
        /* What an unanswered write left has to be settled before the next write. */
        if (queue->ledger && operation != LG_FLUSH && queue->ledger->pending[block])
            operation = LG_READ;
        uint16_t index = queue->free_slots[--queue->free_count];
        prepare(queue, index, operation, block);
        queue->slot[index].submitted = now;
        queue->due += workload->interval_ns;
        queue->started++;
        add(queue, index);
        count++;
    }
    if (count && publish(queue))
        return worker_fail(worker, LG_KICK_FAILED, number, 0, 0, 0);
    return count;
}

/* A read must return what the last write left, or what an unanswered one may have left. */
static int check_read(struct lg_worker *worker, uint32_t number, uint16_t index)
{
    struct lg_queue *queue = worker->queues[number];
    struct lg_ledger *ledger = queue->ledger;
    struct lg_slot *slot = &queue->slot[index];
    const uint8_t *data = data_of(queue, index);
    uint32_t pending = ledger->pending[slot->block];
    uint64_t found, ignored;

    if (!slot->generation && !pending)
        return 0;
    int error = lg_pattern_check(data, queue->block_size, ledger->seed, slot->block,
                                 slot->generation, &found);
    if (error && pending &&
        !lg_pattern_check(data, queue->block_size, ledger->seed, slot->block, pending, &ignored)) {
        ledger->generation[slot->block] = pending;
        error = LG_OK;
    }
    if (error && slot->generation)
        return worker_fail(worker, error, number, slot->block, slot->generation, found);
    ledger->pending[slot->block] = 0;
    return 0;
}

static int complete(struct lg_worker *worker, uint32_t number, uint16_t index, uint32_t length)
{
    struct lg_queue *queue = worker->queues[number];
    struct lg_slot *slot = &queue->slot[index];
    struct control *control = control_of(queue, index);
    uint8_t status = atomic_load_explicit(&control->status, memory_order_relaxed);
    uint8_t operation = slot->operation;

    slot->operation = LG_NONE;
    if (queue->ledger && operation != LG_FLUSH)
        queue->ledger->busy[slot->block] = 0;
    if (status)
        return worker_fail(worker, LG_IO_ERROR, number, slot->block, 0, status);
    switch (operation) {
    case LG_READ:
        queue->reads++;
        if (queue->ledger && check_read(worker, number, index))
            return -1;
        break;
    case LG_WRITE:
    case LG_WRITE_ZEROES:
        *(operation == LG_WRITE ? &queue->writes : &queue->zeroes) += 1;
        if (queue->ledger) {
            queue->ledger->generation[slot->block] = slot->generation;
            queue->ledger->pending[slot->block] = 0;
        }
        break;
    default:
        queue->flushes++;
    }
    if (length != (operation == LG_READ ? queue->block_size + 1 : 1))
        queue->odd_lengths++;
    queue->free_slots[queue->free_count++] = index;
    return 0;
}

/* Both halves of a packed ring's base. */
static uint32_t packed_base(uint16_t index, bool wrap)
{
    return packed_place(index, wrap) * 0x10001u;
}

uint32_t lg_known_base(const struct lg_queue *queue)
{
    if (queue->packed)
        return packed_base(0, true);
    return atomic_load_explicit(&used_of(queue)->idx, memory_order_acquire);
}

uint32_t lg_base(const struct lg_queue *queue)
{
    return queue->packed ? packed_base(queue->avail_index, queue->avail_wrap) : queue->avail_index;
}

bool queue_has_used(const struct lg_queue *queue)
{
    if (queue->packed)
        return queue_in_flight(queue) && packed_has_used(queue);
    uint16_t idx = atomic_load_explicit(&used_of(queue)->idx, memory_order_acquire);
    return idx != queue->used_index;
}

/* Take the completion of a request. Returns 0, or -1. */
static int reap(struct lg_worker *worker, uint32_t number, uint32_t index, uint32_t length,
                uint64_t now)
{
    struct lg_queue *queue = worker->queues[number];
    uint64_t submitted = queue->slot[index].submitted;

    queue->histogram[lg_bucket(now > submitted ? now - submitted : 0)]++;
    return complete(worker, number, (uint16_t)index, length);
}

static int reap_packed(struct lg_worker *worker, uint32_t number, uint64_t now)
{
    struct lg_queue *queue = worker->queues[number];
    int count = 0;

    while (queue_has_used(queue)) {
        const struct packed_desc *used = &packed_ring(queue)[queue->used_index];
        uint16_t id = used->id;

        if (id >= queue->depth || !queue->slot[id].operation)
            return worker_fail(worker, LG_BAD_USED_ID, number, 0, 0, id);
        packed_skip_used(queue, queue->indirect ? 1 : queue->slot[id].length);
        if (reap(worker, number, id, used->len, now))
            return -1;
        count++;
    }
    return count;
}

int queue_reap(struct lg_worker *worker, uint32_t number, uint64_t now)
{
    struct lg_queue *queue = worker->queues[number];

    if (queue->packed)
        return reap_packed(worker, number, now);
    struct used *used = used_of(queue);
    uint16_t idx = atomic_load_explicit(&used->idx, memory_order_acquire);
    uint16_t count = (uint16_t)(idx - queue->used_index);
    uint16_t step = queue->indirect ? 1 : chain_length(queue);

    if (count > queue_in_flight(queue))
        return worker_fail(worker, LG_BAD_USED_INDEX, number, 0, queue->used_index, idx);
    for (uint16_t i = 0; i < count; i++) {
        struct used_elem elem = used->ring[queue->used_index & (queue->size - 1)];
        uint32_t index = elem.id / step;
        if (elem.id % step || index >= queue->depth || !queue->slot[index].operation)
            return worker_fail(worker, LG_BAD_USED_ID, number, 0, 0, elem.id);
        queue->used_index++;
        if (reap(worker, number, index, elem.len, now))
            return -1;
    }
    /* A used_event that is never touched comes round after 65536 completions. */
    if (queue->event_idx && (uint16_t)(queue->used_index - queue->suppressed_at) > 0x4000)
        queue_suppress_interrupts(queue);
    return count;
}

void queue_suppress_interrupts(struct lg_queue *queue)
{
    struct avail *avail = avail_of(queue);

    if (queue->packed) {
        packed_suppress_interrupts(queue);
    } else if (queue->event_idx) {
        atomic_store_explicit(used_event(avail, queue->size), (uint16_t)(queue->used_index - 1),
                              memory_order_relaxed);
        queue->suppressed_at = queue->used_index;
    } else {
        atomic_store_explicit(&avail->flags, AVAIL_F_NO_INTERRUPT, memory_order_relaxed);
    }
}

void queue_arm_interrupt(struct lg_queue *queue)
{
    struct avail *avail = avail_of(queue);

    if (queue->packed) {
        packed_arm_interrupt(queue);
        return;
    }
    if (queue->event_idx)
        atomic_store_explicit(used_event(avail, queue->size), queue->used_index,
                              memory_order_relaxed);
    else
        atomic_store_explicit(&avail->flags, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}
