/* SPDX-License-Identifier: Apache-2.0 */
/* What Python has to say to an iothread, without waiting for it.
 *
 * A command runs between two turns. If the iothread is in none, the caller runs it; else it waits in
 * the iothread's inbox, and the iothread runs it before its next turn. Commands run in the order in
 * which they were given. Whether a port's commands have run can be asked (`vb_port_pending`), and
 * that they have is news of the port.
 */
#ifndef VHOSTBLK_COMMAND_H
#define VHOSTBLK_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

struct vb_iothread;
struct vb_port;

struct vb_command {
    void (*run)(struct vb_command *command);
    struct vb_iothread *iothread;
    struct vb_port *port; /* or NULL, also when it is gone afterwards */
    void *pointer;
    int64_t number;
    bool asleep; /* it makes no work for an iothread that sleeps */
    struct vb_command *next;
};

/* Give a command, which is copied; true: it has run. */
bool vb_command_give(const struct vb_command *command);

/* The same, in short. */
static inline bool vb_port_tell(struct vb_port *port, struct vb_iothread *iothread,
                                void (*run)(struct vb_command *command), int64_t number,
                                void *pointer)
{
    struct vb_command command = {
        .run = run, .iothread = iothread, .port = port, .number = number, .pointer = pointer};

    return vb_command_give(&command);
}

/* Run the commands in the inbox. Under the lock. */
void vb_inbox_run(struct vb_iothread *iothread);

/* Take the iothread's place between two of its turns; false: it is in one. `visit_end` wakes it where
 * it sleeps, if there is work for it. */
bool vb_iothread_visit(struct vb_iothread *iothread);
void vb_iothread_visit_waiting(struct vb_iothread *iothread); /* until it can */
void vb_iothread_visit_end(struct vb_iothread *iothread, bool work);

#endif
