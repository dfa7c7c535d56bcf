/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes a whole queue: the input is a script of what driver, file, Python and time do, in any order.
 * In the end everything is let finish, and the queue's books must balance.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/eventfd.h>

#include "core/iothread.h"
#include "guest.h"
#include "stub_io.h"
#include "virtqueue/queue.h"

#define CALL_FD 78

/* In place of the iothread. */

void vb_iothread_wake(struct vb_iothread *iothread)
{
}

void vb_iothread_signal(struct vb_iothread *iothread)
{
}

/* All is signalled through a duplicate. */
static int call_copy = -1;

void vb_iothread_notify(struct vb_iothread *iothread, int fd)
{
    CHECK(fd == call_copy);
}

void vb_notify_clear(int fd)
{
}

int __wrap_fcntl(int fd, int command, ...)
{
    CHECK(fd == CALL_FD && command == F_DUPFD_CLOEXEC && call_copy < 0);
    return call_copy = CALL_FD + 1;
}

int __wrap_close(int fd)
{
    CHECK(fd == call_copy);
    call_copy = -1;
    return 0;
}

int __wrap_eventfd_write(int fd, eventfd_t value)
{
    CHECK(fd == CALL_FD);
    return 0;
}

struct world {
    struct input *input;
    struct guest guest;
    struct vb_iothread iothread;
    struct vb_queue *queue;
    struct vb_extent_map map;
    struct vb_budget *budget;
    uint64_t table[64];
    struct vb_sync sync;
    uint32_t size; /* of the ring */
    uint32_t left;
    uint16_t *avail;
    uint16_t driver_index;
    bool packed;
    bool driver_wrap;
    unsigned holds;
    uint16_t up[256];
    unsigned up_count;
};

/* A few requests, and then everything goes up. */
static void fill_budget(struct world *world)
{
    struct vb_rate rates[6] = {[3] = {.avg = 1, .max = 4, .length = 1}};

    vb_budget_configure(world->budget, rates, 512, vb_now());
}

static void choose_map(struct world *world)
{
    struct input *input = world->input;
    uint8_t kind = take_u8(input);
    struct vb_extent_map *map = &world->map;

    *map = (struct vb_extent_map){
        .kind = kind % 4,
        .flags = take_u8(input) | (kind & 16 ? VB_EXTENT_IN_MEMORY : 0),
        .fd = stub.fd ? stub.fd + 1 : FILE_FD,
        .alignment = kind & 32 ? 512 : 1,
        .size = take_u8(input) * 512ull,
        .offset = take_u8(input) * 512ull,
        .cluster_bits = 12,
        .sync = kind & 64 ? &world->sync : NULL,
        .table = world->table,
        .budget = kind & 8 ? world->budget : NULL,
    };
    stub.fd = map->fd;
    fill_budget(world);
    stub.alignment = map->alignment;
    stub.file_begin = map->kind == VB_EXTENT_TABLE ? 0 : map->offset;
    stub.file_end = map->kind == VB_EXTENT_TABLE ? 257 << 12 : map->offset + map->size;
    if (map->kind == VB_EXTENT_TABLE)
        for (unsigned i = 0; i < (map->size + 4095) >> 12; i++)
            world->table[i] = (uint64_t)take_u8(input) << 12 | take_u8(input) % 32;
    vb_port_set_map(&world->queue->port, kind & 128 ? NULL : map);
}

static bool idle(const struct world *world)
{
    return world->holds && !world->queue->port.in_flight;
}

/* A head that is not in flight, if there is one, so that scripts get far; or just any number. */
static void offer(struct world *world)
{
    uint8_t wanted = take_u8(world->input);
    uint16_t head = wanted % world->size;

    if (wanted == 255)
        head = take_u16(world->input);
    else
        for (uint32_t i = 0; i < world->size && world->queue->slots[head].task.state; i++)
            head = (head + 1) % world->size;
    world->avail[2 + world->driver_index++ % world->size] = head;
    if (wanted == 254)
        world->driver_index += take_u16(world->input);
    world->avail[1] = world->driver_index;
}

/* Make the descriptors from the driver's place on available as one chain, under an id that is free, if
 * there is one; or do what no driver does. */
static void offer_packed(struct world *world)
{
    struct vb_packed_desc *ring = (struct vb_packed_desc *)world->queue->ring.desc;
    uint8_t wanted = take_u8(world->input), pieces = take_u8(world->input);
    uint16_t id = wanted % world->size;

    for (uint32_t i = 0; wanted < 250 && i < world->size && world->queue->slots[id].task.state; i++)
        id = (id + 1) % world->size;
    if (wanted == 255)
        id = take_u16(world->input);
    if (pieces & 64) { /* and what it wants to be notified of */
        world->avail[0] = wanted;
        world->avail[1] = pieces / 4 % 4;
    }
    for (uint32_t i = 0; i <= pieces % 4u; i++) {
        struct vb_packed_desc *desc = &ring[world->driver_index];

        desc->id = id;
        desc->flags &= VB_DESC_F_WRITE | VB_DESC_F_INDIRECT;
        desc->flags |= i < pieces % 4u || pieces == 255 ? VB_DESC_F_NEXT : 0;
        desc->flags |= world->driver_wrap ? VB_PACKED_AVAIL : VB_PACKED_USED;
        if (++world->driver_index == world->size) {
            world->driver_index = 0;
            world->driver_wrap = !world->driver_wrap;
        }
    }
}

/* Give descriptors that were written as a split ring's the form of a packed one's: the same but for the
 * last two fields. A driver's offer adds the rest. */
static void to_packed(struct world *world)
{
    for (uint32_t i = 0; i < world->size; i++) {
        struct vb_desc desc = ((struct vb_desc *)world->queue->ring.desc)[i];
        uint32_t ahead = (i + world->size - world->driver_index) % world->size;

        if (ahead < 5)
            ((struct vb_packed_desc *)world->queue->ring.desc)[i] = (struct vb_packed_desc){
                desc.addr, desc.len, 0, desc.flags & VB_DESC_F_WRITE};
    }
}

/* Lay out a request as drivers do: header, data, status, in up to four descriptors. */
static void lay_out(struct world *world)
{
    static const uint32_t types[] = {0, 1, 0, 1, 4, 8, 11, 13};
    struct input *input = world->input;
    struct vb_desc *table = (struct vb_desc *)world->queue->ring.desc;
    const struct vb_region *region = &world->guest.regions[take_u8(input) % world->guest.count];
    uint32_t type = types[take_u8(input) % 8];
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header = {type, 0, take_u8(input)};
    uint64_t place = take_u16(input) % region->size;
    uint32_t head = take_u8(input) % world->size, pieces = 1 + take_u8(input) % 2;

    if (region->size - place < sizeof(header))
        return;
    memcpy((char *)region->host_addr + place, &header, sizeof(header));
    if (world->packed) /* what follows makes these descriptors available */
        head = world->driver_index;
    table[head] = (struct vb_desc){region->guest_addr + place, 16, 1, (head + 1) % world->size};
    for (uint32_t i = 1; i <= pieces; i++) {
        uint16_t flags = type == 0 || type == 8 ? 3 : 1;
        uint32_t length = type < 2 ? take_u8(input) % 4 * 512 : take_u8(input) / 16 * 16;

        head = (head + 1) % world->size;
        table[head] = (struct vb_desc){region->guest_addr + take_u16(input) % region->size, length,
                                       flags, (head + 1) % world->size};
    }
    head = (head + 1) % world->size;
    table[head] = (struct vb_desc){region->guest_addr + take_u8(input), 1, 2, 0};
    if (world->packed)
        to_packed(world);
}

static void sweep(struct world *world)
{
    world->iothread.now = vb_now();
    vb_port_turn(&world->queue->port);
    vb_queue_publish(&world->queue->port);
    vb_port_show(&world->queue->port);
}

/* What syncs the file has the turn to, until its outcome is known. */
static void check_turn(const struct world *world, const struct vb_task *task)
{
    const struct vb_io_op *op = &task->op;
    bool syncs = op->opcode == VB_IO_FSYNC ||
                 (op->opcode == VB_IO_WRITE && (op->flags & RWF_DSYNC || task->sync_error));

    CHECK(task->syncing == (syncs && task->map->sync));
    CHECK(!task->syncing || world->sync.holders & VB_SYNC_ENGINE);
}

/* Python flushes the file, or has done so. */
static void take_turns(struct world *world)
{
    if (world->sync.holders == VB_SYNC_PYTHON)
        vb_sync_end(&world->sync, VB_SYNC_PYTHON);
    else
        vb_sync_claim(&world->sync);
}

static void reap(struct world *world)
{
    struct vb_io_op *op = stub_reap(&stub.io);

    if (!op)
        return;
    world->iothread.now = vb_now();
    if (op->opcode == VB_IO_DROP)
        vb_port_file_gone((struct vb_port *)((char *)op - offsetof(struct vb_port, drop)));
    else {
        struct vb_task *task = (struct vb_task *)((char *)op - offsetof(struct vb_task, op));

        check_turn(world, task);
        vb_task_continue(task);
    }
    vb_queue_publish(&world->queue->port);
    vb_port_show(&world->queue->port);
}

static void take_upcalls(struct world *world)
{
    static struct vb_upcall records[4];
    static struct vb_request requests[4];
    struct vb_port *port;
    static uint64_t segments[2 * VB_MAX_CHAIN * VB_MAX_PIECES];
    uint32_t count = vb_upcalls_take(&world->iothread, 4, records, &port,
                                     VB_MAX_CHAIN * VB_MAX_PIECES, segments);

    vb_queue_describe(world->queue, count, records, requests);
    for (uint32_t i = 0; i < count; i++) {
        const struct vb_request *request = &requests[i];
        uint64_t length = 0;

        CHECK(port == &world->queue->port && request->status == VB_STATUS_PENDING);
        CHECK(records[i].kind >= VB_TASK_OTHER || records[i].offset == request->sector * 512);
        for (uint32_t j = request->iov_first; j < request->iov_first + request->iov_count; j++) {
            CHECK(owns(&world->guest, segments[2 * j], segments[2 * j + 1]));
            length += segments[2 * j + 1];
        }
        CHECK(length == request->length);
        CHECK(world->up_count < 256);
        world->up[world->up_count++] = request->head;
    }
}

static void complete(struct world *world)
{
    uint8_t which = take_u8(world->input), status = take_u8(world->input) % 4;
    uint32_t written = take_u16(world->input);
    uint16_t head = which;

    /* Python may also be confused. Heads that it has not been given are in `upcalls` still. */
    if (world->up_count) {
        which %= world->up_count;
        head = world->up[which];
        world->up[which] = world->up[--world->up_count];
    } else if (world->queue->slots[which % world->size].task.state == VB_TASK_UP) {
        return;
    }
    /* Without statuses all went well, and the engine says itself what was written. */
    vb_port_complete(&world->queue->port, 1, &head, status == 3 ? NULL : &status, &written);
}

static void hold_or_release(struct world *world)
{
    if (take_u8(world->input) & 1) {
        world->holds++;
        vb_port_hold(&world->queue->port);
    } else if (world->holds) {
        world->holds--;
        vb_port_release(&world->queue->port);
    }
}

static void move(struct world *world)
{
    struct vb_ring ring = world->queue->ring;

    CHECK(vb_queue_move(world->queue, &ring, world->guest.regions,
                        1 + take_u8(world->input) % world->guest.count) == 0);
}

static void step(struct world *world)
{
    struct input *input = world->input;
    struct vb_queue *queue = world->queue;
    uint8_t what = take_u8(input);

    switch (what % 16) {
    case 0:
    case 1:
        lay_out(world);
        break;
    case 2:
    case 3:
        for (unsigned i = 0; i <= what / 64; i++)
            world->packed ? offer_packed(world) : offer(world);
        break;
    case 4:
    case 5:
        sweep(world);
        break;
    case 6:
    case 7:
        reap(world);
        break;
    case 8:
        take_upcalls(world);
        break;
    case 9:
        complete(world);
        break;
    case 10:
        hold_or_release(world);
        break;
    case 11:
        scribble(&world->guest, input);
        break;
    case 12:
        take_bytes(input, (struct vb_desc *)queue->ring.desc + take_u8(input) % world->size, 16);
        break;
    case 13:
        if (idle(world)) {
            if (what & 16)
                choose_map(world);
            else
                move(world);
        }
        break;
    case 14:
        vb_queue_set_write_through(queue, what & 16);
        if (what & 32)
            vb_queue_set_device_size(queue, take_u8(input) * 512ull);
        if (what & 64)
            take_turns(world);
        break;
    case 15:
        vb_port_arm(&queue->port);
        break;
    }
}

/* Keep a record of what is in flight, in which an earlier process has left something, or none. */
static struct vb_inflight_region *track(struct world *world)
{
    struct vb_inflight_region *record;
    uint16_t left[64];
    uint8_t wanted = take_u8(world->input);

    if (wanted & 128)
        return NULL;
    record = calloc(1, sizeof(*record) + world->size * sizeof(*record->desc));
    world->left = wanted % (world->size + 1);
    for (uint32_t i = 0; i < world->left; i++) {
        left[i] = (uint16_t)(world->size - 1 - i);
        record->desc[left[i]].inflight = 1;
    }
    CHECK(!vb_queue_track(world->queue, (uint64_t)(uintptr_t)record, wanted, world->left, left));
    return record;
}

/* The same with a packed ring, of which nothing is left. */
static struct vb_inflight_packed_region *track_packed(struct world *world)
{
    struct vb_inflight_packed_region *record;
    uint16_t links[64];

    if (take_u8(world->input) & 128)
        return NULL;
    record = calloc(1, sizeof(*record) + world->size * sizeof(*record->desc));
    for (uint32_t i = 0; i < world->size; i++)
        record->desc[i].next = links[i] = (uint16_t)(i + 1);
    CHECK(!vb_queue_track_packed(world->queue, (uint64_t)(uintptr_t)record, 0, world->size, links,
                                 0, 0, NULL, NULL));
    return record;
}

/* All entries are free, each once, and the record is where the ring is. */
static void audit_packed_record(const struct world *world,
                                const struct vb_inflight_packed_region *record)
{
    const struct vb_ring *ring = &world->queue->ring;
    uint32_t entry = record->heads & 0xFFFF, free_entries = 0;
    bool seen[64] = {false};

    for (uint32_t i = 0; i < world->size; i++)
        CHECK(!record->desc[i].inflight);
    for (; entry < world->size; entry = record->desc[entry].next, free_entries++) {
        CHECK(!seen[entry]);
        seen[entry] = true;
    }
    CHECK(free_entries == world->size);
    CHECK(record->heads >> 16 == (record->heads & 0xFFFF));
    if (record->places)
        CHECK(record->places == (ring->next_used * 0x10001ull | ring->used_wrap * 0x101ull << 32));
}

/* Nothing is in flight, so nothing may be noted, but for what was never taken again. */
static void audit_record(const struct world *world, const struct vb_inflight_region *record)
{
    const struct vb_inflight *inflight = &world->queue->inflight;
    uint32_t noted = 0;

    for (uint32_t i = 0; i < world->size; i++)
        noted += record->desc[i].inflight;
    CHECK(noted <= (uint32_t)(inflight->left_count - inflight->left_taken));
    CHECK(!inflight->left_taken || record->used_idx == world->queue->ring.next_used);
}

static void finish(struct world *world)
{
    stub.benign = true;
    world->input->left = 0;
    world->holds++;
    vb_port_hold(&world->queue->port);
    do {
        sweep(world);
        while (stub.count)
            reap(world);
    } while (world->queue->port.pieces);
    do
        take_upcalls(world);
    while (world->iothread.upcalls || world->iothread.fetched);
    while (world->up_count)
        complete(world);
    sweep(world);
    while (stub.count) /* files that are being closed */
        reap(world);
    CHECK(!vb_port_in_flight(&world->queue->port));
    for (int i = 0; i < KEPT_FILES; i++)
        CHECK(!stub.kept[i]);
}

static void audit(const struct world *world, const struct vb_ring *began)
{
    const struct vb_queue *queue = world->queue;
    uint64_t counted = queue->port.stats.invalid;

    CHECK(!queue->port.in_flight && !queue->port.mapped_in_flight && !queue->port.heap_bytes);
    CHECK(!queue->unpublished);
    CHECK(!(world->sync.holders & VB_SYNC_ENGINE));
    if (began->packed) {
        CHECK(queue->ring.next_used == queue->ring.next_avail);
        CHECK(queue->ring.used_wrap == queue->ring.avail_wrap);
        CHECK(!queue->ring.taken && !queue->ring.unshown);
    } else {
        CHECK((uint16_t)(queue->ring.next_used - began->next_used) ==
              (uint16_t)(queue->ring.next_avail - began->next_avail + queue->inflight.left_taken));
        CHECK(*(const uint16_t *)(queue->ring.used + 2) == queue->ring.next_used);
    }
    for (unsigned kind = 0; kind < VB_STAT_KINDS; kind++) {
        uint64_t sum = 0;

        for (unsigned bucket = 0; bucket < 32; bucket++)
            sum += queue->port.stats.latency[kind][bucket];
        CHECK(sum == queue->port.stats.operations[kind]);
        counted += sum + queue->port.stats.failed[kind];
    }
    CHECK(counted <= (uint64_t)UINT16_MAX * (1 + queue->port.stats.sweeps));
}

/* Let the ring be a packed one, of any size, with event suppression where a split one has its rings. */
static void make_packed(struct world *world, struct vb_ring *ring, uint8_t kind)
{
    if (kind & 2 && world->size > 2)
        ring->size = --world->size;
    world->packed = true;
    world->driver_index = world->driver_index % world->size;
    world->driver_wrap = kind & 4;
    ring->packed = 1;
    ring->next_avail = ring->next_used = world->driver_index;
    ring->avail_wrap = ring->used_wrap = world->driver_wrap;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct world world = {.input = &input, .sync.event_fd = CALL_FD};
    struct vb_queue_config config = {0};
    uint8_t shape = take_u8(&input), kind = size ? data[size - 1] : 0;
    struct vb_inflight_region *record = NULL;
    struct vb_inflight_packed_region *packed_record = NULL;
    void *desc, *used;

    make_guest(&world.guest, &input);
    stub = (struct stub_io){.io.vtable = &stub_vtable, .input = &input, .alignment = 1};
    world.iothread.io = &stub.io;
    world.iothread.fetched_end = &world.iothread.fetched;
    world.size = 1u << shape % 7;
    desc = calloc(world.size, sizeof(struct vb_desc));
    world.avail = calloc(1, 6 + 2 * world.size);
    used = calloc(1, 6 + 8 * world.size);
    world.driver_index = take_u16(&input);
    world.avail[1] = world.driver_index;
    config.ring = (struct vb_ring){
        .desc = (uint64_t)(uintptr_t)desc,
        .avail = (uint64_t)(uintptr_t)world.avail,
        .used = (uint64_t)(uintptr_t)used,
        .size = world.size,
        .next_avail = world.driver_index,
        .next_used = take_u16(&input),
        .event_idx = shape & 8,
    };
    ((uint16_t *)used)[1] = config.ring.next_used;
    if (kind >= 0xC0)
        make_packed(&world, &config.ring, kind);
    config.device_size = take_u8(&input) * 512ull;
    config.logical_block_size = shape & 16 ? 4096 : 512;
    config.kick_fd = -1;
    config.writable = !(shape & 32);
    config.write_through = shape & 64;
    world.queue = vb_queue_new(&world.iothread, &config, world.guest.regions, world.guest.count);
    CHECK(world.queue);
    if (world.packed)
        packed_record = track_packed(&world);
    else
        record = track(&world);
    if (shape & 128)
        vb_queue_set_call(world.queue, CALL_FD);
    world.budget = vb_budget_new();
    CHECK(world.budget);
    choose_map(&world);
    vb_port_open(&world.queue->port);
    vb_port_release(&world.queue->port);
    while (input.left)
        step(&world);
    finish(&world);
    audit(&world, &config.ring);
    if (record)
        audit_record(&world, record);
    if (packed_record)
        audit_packed_record(&world, packed_record);
    vb_port_close(&world.queue->port);
    CHECK(!world.iothread.ports && call_copy < 0);
    vb_budget_free(world.budget);
    free(record);
    free(packed_record);
    free(desc);
    free(world.avail);
    free(used);
    free_guest(&world.guest);
    return 0;
}
