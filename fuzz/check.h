/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_FUZZ_CHECK_H
#define VHOSTBLK_FUZZ_CHECK_H

#include <stdio.h>
#include <stdlib.h>

/* What must hold, in every build. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                       \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
