/* SPDX-License-Identifier: Apache-2.0 */
/* A kind of port for tests: a protocol over a stream socket.
 *
 * A request has sixteen bytes, and behind them its data if it is a write. An answer has eight, and
 * behind them the data if it is to a read. Kinds and flags are those of tasks; from 3 on they are
 * Python's. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "core/iothread.h"
#include "core/port.h"

#include "wire.cdef.h"

enum { SLOTS = 64, MAX_LENGTH = 64 << 20 };

struct request {
    uint8_t kind, flags;
    uint16_t cookie;
    uint32_t length;
    uint64_t offset;
};

struct answer {
    uint32_t error;
    uint16_t cookie, kind;
    char data[];
};

struct slot {
    struct vb_task task;
    struct iovec iov; /* in the answer */
    struct answer *answer;
    struct slot *next; /* free, or answered */
};

struct wire {
    struct vb_port port;
    struct slot slots[SLOTS], *free; /* a list */
    struct request request;          /* that is being received, or whose data is */
    struct slot *receiving, *answers, **answers_end;
    size_t received, sent; /* of the first answer */
};

static void answer(struct slot *slot, int error)
{
    struct wire *wire = (struct wire *)slot->task.port;

    slot->answer->error = (uint32_t)error;
    slot->next = NULL;
    wire->answers_end = wire->answers ? wire->answers_end : &wire->answers;
    *wire->answers_end = slot;
    wire->answers_end = &slot->next;
}

static void done(struct vb_task *task, int error, uint64_t bytes)
{
    vb_port_count(task->port, task, task->kind, task->length, task->port->iothread->now);
    answer((struct slot *)task, error);
}

/* Receive the rest of `size` bytes; false: it has not come, or nothing will. */
static bool receive(struct wire *wire, void *into, size_t size)
{
    while (wire->received < size) {
        char *at = (char *)into + wire->received;
        ssize_t got = recv(wire->port.wake_fd, at, size - wire->received, MSG_DONTWAIT);

        if (!got || (got < 0 && errno != EAGAIN))
            vb_port_break(&wire->port, "the peer has closed the connection");
        if (got <= 0)
            return false;
        wire->received += (size_t)got;
        wire->port.turn.bytes -= got;
    }
    wire->received = 0;
    return true;
}

/* Give the request a slot; false: it is too long. */
static bool prepare(struct wire *wire)
{
    const struct request *request = &wire->request;
    size_t data = request->kind <= VB_TASK_WRITE ? request->length : 0;
    struct slot *slot = wire->free;
    struct vb_task *task = &slot->task;

    slot->answer = data <= MAX_LENGTH ? calloc(1, sizeof(*slot->answer) + data) : NULL;
    if (!slot->answer) {
        vb_port_break(&wire->port, "a request is too long");
        return false;
    }
    *slot->answer = (struct answer){.cookie = request->cookie, .kind = request->kind};
    slot->iov = (struct iovec){slot->answer->data, data};
    task->kind = request->kind < VB_TASK_DISCARD ? request->kind : VB_TASK_OTHER + request->kind;
    task->flags = request->flags;
    task->offset = request->offset;
    task->length = request->length;
    task->iov_count = request->kind <= VB_TASK_WRITE;
    wire->receiving = slot;
    wire->free = slot->next;
    wire->port.full = !wire->free;
    return true;
}

/* Receive a request and start it; false: it has not come. */
static bool take(struct wire *wire)
{
    struct vb_port *port = &wire->port;
    struct vb_task *task;

    if (!wire->receiving && !(receive(wire, &wire->request, sizeof(wire->request)) && prepare(wire)))
        return false;
    task = &wire->receiving->task;
    if (task->kind == VB_TASK_WRITE && !receive(wire, task->iovs->iov_base, task->length))
        return false;
    wire->receiving = NULL;
    port->in_flight++;
    task->begun = port->iothread->now;
    task->state = VB_TASK_STARTED;
    if (task->offset <= port->size && task->length <= port->size - task->offset)
        vb_task_start(task);
    else
        answer((struct slot *)task, EINVAL);
    return true;
}

static bool sweep(struct vb_port *port)
{
    uint64_t before = port->stats.sweeps;

    while (vb_port_takes_one(port) && take((struct wire *)port))
        port->stats.sweeps = before + 1;
    vb_run_finish(port);
    return port->stats.sweeps != before;
}

static void publish(struct vb_port *port)
{
    struct wire *wire = (struct wire *)port;

    vb_stats_take(&port->stats, &port->counts, port->iothread->now);
    while (wire->answers) {
        struct slot *slot = wire->answers;
        bool data = slot->answer->kind == VB_TASK_READ && !slot->answer->error;
        size_t left = sizeof(*slot->answer) + (data ? slot->iov.iov_len : 0) - wire->sent;
        const char *at = (char *)slot->answer + wire->sent;
        ssize_t put = send(port->wake_fd, at, left, MSG_DONTWAIT | MSG_NOSIGNAL);

        wire->sent += put > 0 ? (size_t)put : 0;
        if (put < 0 ? errno == EAGAIN : (size_t)put < left)
            break;
        wire->sent = 0;
        wire->answers = slot->next;
        free(slot->answer);
        slot->task.state = VB_TASK_FREE;
        slot->next = wire->free;
        wire->free = slot;
        port->full = false;
        port->in_flight--;
    }
    port->wants_room = wire->answers;
}

static struct vb_task *find(struct vb_port *port, uint16_t tag)
{
    return tag < SLOTS ? &((struct wire *)port)->slots[tag].task : NULL;
}

static void complete(struct vb_port *port, struct vb_task *task, uint8_t status, uint32_t bytes)
{
    answer((struct slot *)task, status);
}

static void destroy(struct vb_port *port)
{
    struct wire *wire = (struct wire *)port;

    free(wire->receiving ? wire->receiving->answer : NULL);
    vb_port_fini(port);
    free(wire);
}

static const struct vb_port_vtable vtable = {sweep, publish, NULL, NULL, find, complete, destroy};

struct vb_port *wire_new(struct vb_iothread *iothread, int fd, uint64_t size)
{
    struct wire *wire = calloc(1, sizeof(*wire));

    vb_port_init(&wire->port, &vtable, iothread, fd);
    wire->port.size = size, wire->port.block = 512;
    for (uint16_t i = 0; i < SLOTS; i++) {
        wire->slots[i].task = (struct vb_task){
            .port = &wire->port, .done = done, .tag = i, .iovs = &wire->slots[i].iov};
        wire->slots[i].next = i ? &wire->slots[i - 1] : NULL;
    }
    wire->free = &wire->slots[SLOTS - 1];
    return &wire->port;
}
