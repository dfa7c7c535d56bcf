/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_TIMER_H
#define VHOSTBLK_TIMER_H

#include <stdint.h>

#include "timer.cdef.h"

#endif
