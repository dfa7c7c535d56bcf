/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_GUARD_H
#define VHOSTBLK_GUARD_H

#include <stdbool.h>
#include <stdint.h>

struct vb_guard;

#include "guard.cdef.h"

/* How many ranges have been lost so far: where it has not changed, none has. */
extern uint32_t vb_guard_losses;

/* Whether the guarded range that `address` lies in, if any, is lost. */
bool vb_guard_address_lost(uint64_t address);

#endif
