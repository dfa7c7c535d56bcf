/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_INSPECT_H
#define VHOSTBLK_INSPECT_H

#include "core/extent.h"

#include "virtqueue/request.h"

#include "inspect.cdef.h"

#endif
