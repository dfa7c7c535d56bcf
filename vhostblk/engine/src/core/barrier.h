/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_BARRIER_H
#define VHOSTBLK_BARRIER_H

#include <stdint.h>

#include "barrier.cdef.h"

#endif
