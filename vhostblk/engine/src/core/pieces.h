/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_PIECES_H
#define VHOSTBLK_PIECES_H

#include "task.h"

/* Start a long transfer by the map, whose operation covers all of it. */
void vb_pieces_begin(struct vb_task *task);

/* Go on behind a piece, of which `bytes` have been transferred: all. */
void vb_pieces_next(struct vb_task *task, uint64_t bytes);

/* Put zeroes into all that is left of a read by the map. */
void vb_pieces_zero(struct vb_task *task);

/* Do pieces of transfers that wait for the port's turn; true where there were some. */
bool vb_pieces_do(struct vb_port *port);

#endif
