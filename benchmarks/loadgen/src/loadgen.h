/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LOADGEN_H
#define LOADGEN_H

#include <stdbool.h>
#include <stdint.h>

#include "loadgen.cdef.h"

#endif
