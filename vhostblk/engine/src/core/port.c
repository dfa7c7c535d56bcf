/* SPDX-License-Identifier: Apache-2.0 */
#include "port.h"

#include <stdlib.h>
#include <string.h>

#include "iothread.h"

void vb_port_init(struct vb_port *port, const struct vb_port_vtable *vtable,
                  struct vb_iothread *iothread, int wake_fd)
{
    port->vtable = vtable;
    port->iothread = iothread;
    port->wake_fd = wake_fd;
    port->holds = 1;
    port->file = VB_FILE_UNTRIED;
    port->drop.opcode = VB_IO_DROP;
}

bool vb_port_open(struct vb_port *port)
{
    struct vb_iothread *iothread = port->iothread;
    struct vb_port **grown;

    vb_iothread_enter(iothread);
    grown = realloc(iothread->ports, (iothread->port_count + 1) * sizeof(*iothread->ports));
    if (grown) {
        iothread->ports = grown;
        iothread->ports[iothread->port_count++] = port;
        iothread->ports_changed = true;
    }
    vb_iothread_leave(iothread);
    return grown != NULL;
}

void vb_port_free(struct vb_port *port)
{
    struct vb_iothread *iothread = port->iothread;

    vb_iothread_enter(iothread);
    for (uint32_t i = 0; i < iothread->port_count; i++)
        if (iothread->ports[i] == port)
            iothread->ports[i--] = iothread->ports[--iothread->port_count];
    iothread->ports_changed = true;
    vb_iothread_leave(iothread);
    port->vtable->destroy(port);
}

/* Whether the kernel has a file open for us. */
static bool has_file(const struct vb_port *port)
{
    return port->file >= 0 || port->file == VB_FILE_DROPPED;
}

/* A port that is held and idle keeps no file open: its node may be about to close it. Only the
 * iothread can do that (the io's rule), and the kernel may take a while: until then the file counts as
 * in flight. */
void vb_port_drop_file(struct vb_port *port)
{
    struct vb_io *io = port->iothread->io;

    if (port->file < 0 || port->mapped_in_flight ||
        !(port->file_stale || (port->holds && !port->in_flight)))
        return;
    port->file_stale = false;
    if (io->vtable->drop_file(io, port->file))
        port->file = VB_FILE_DROPPED;
    else
        vb_port_file_gone(port);
}

void vb_port_file_gone(struct vb_port *port)
{
    port->file = VB_FILE_UNTRIED;
    vb_iothread_signal(port->iothread);
}

void vb_port_break(struct vb_port *port, const char *reason)
{
    __atomic_store_n(&port->broken, reason, __ATOMIC_RELEASE);
    vb_iothread_signal(port->iothread);
}

void vb_port_note_error(struct vb_port *port, const struct vb_task *task, int error)
{
    __atomic_store_n(&port->errors[task->kind != VB_TASK_READ], error, __ATOMIC_RELEASE);
    vb_iothread_signal(port->iothread);
}

/* Calls from Python. */

void vb_port_hold(struct vb_port *port)
{
    vb_iothread_enter(port->iothread);
    port->holds++;
    vb_iothread_leave(port->iothread);
}

void vb_port_release(struct vb_port *port)
{
    vb_iothread_enter(port->iothread);
    port->holds--;
    vb_iothread_leave(port->iothread);
}

uint32_t vb_port_in_flight(struct vb_port *port)
{
    uint32_t count;

    vb_iothread_enter(port->iothread);
    count = port->in_flight + (port->holds && has_file(port));
    vb_iothread_leave(port->iothread);
    return count;
}

uint32_t vb_port_mapped_in_flight(struct vb_port *port)
{
    uint32_t count;

    vb_iothread_enter(port->iothread);
    count = port->mapped_in_flight + (port->file_stale || port->file == VB_FILE_DROPPED);
    vb_iothread_leave(port->iothread);
    return count;
}

const char *vb_port_broken(struct vb_port *port)
{
    return __atomic_load_n(&port->broken, __ATOMIC_ACQUIRE);
}

int vb_port_take_error(struct vb_port *port, int write)
{
    return __atomic_exchange_n(&port->errors[write != 0], 0, __ATOMIC_ACQ_REL);
}

void vb_port_set_map(struct vb_port *port, struct vb_extent_map *map)
{
    vb_iothread_enter(port->iothread);
    port->map = map;
    if (port->file >= 0)
        port->file_stale = true;
    else if (port->file == VB_FILE_NONE)
        port->file = VB_FILE_UNTRIED;
    vb_iothread_leave(port->iothread);
}

uint32_t vb_port_settle(struct vb_port *port)
{
    uint32_t count;

    vb_iothread_enter(port->iothread);
    count = port->phase_in_flight[port->phase];
    port->phase ^= 1;
    port->settling = count > 0;
    vb_iothread_leave(port->iothread);
    return count;
}

uint32_t vb_port_unsettled(struct vb_port *port)
{
    uint32_t count;

    vb_iothread_enter(port->iothread);
    count = port->phase_in_flight[port->phase ^ 1];
    vb_iothread_leave(port->iothread);
    return count;
}

const struct vb_stats *vb_port_stats(struct vb_port *port)
{
    return &port->stats;
}
