/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_SYNC_H
#define VHOSTBLK_SYNC_H

#include <stdint.h>

#include "sync.cdef.h"

#endif
