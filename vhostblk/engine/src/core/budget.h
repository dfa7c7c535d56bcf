/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_BUDGET_H
#define VHOSTBLK_BUDGET_H

#include <stdint.h>

#include "budget.cdef.h"

#endif
