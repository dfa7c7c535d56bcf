/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_UPCALL_H
#define VHOSTBLK_UPCALL_H

#include "port.h"

#include "upcall.cdef.h"

#endif
