/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_PR_CONNECTION_H
#define VHOSTBLK_PR_CONNECTION_H

#include <stdint.h>

#include "connection.cdef.h"

#endif
