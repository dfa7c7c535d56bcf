/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_AIO_H
#define VHOSTBLK_AIO_H

#include <stdint.h>

#include "aio.cdef.h"

#endif
