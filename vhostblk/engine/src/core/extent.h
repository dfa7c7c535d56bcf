/* SPDX-License-Identifier: Apache-2.0 */
/* Looking a request up in an extent map. */
#ifndef VHOSTBLK_EXTENT_H
#define VHOSTBLK_EXTENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "budget.h"
#include "sync.h"

#include "extent.cdef.h"

enum vb_extent_verdict vb_extent_lookup(const struct vb_extent_map *map, uint64_t offset,
                                        uint64_t length, enum vb_extent_access access,
                                        uint64_t *file_offset);

/* Whether offset, length and every segment suit the map's file (O_DIRECT). */
bool vb_extent_aligned(const struct vb_extent_map *map, uint64_t offset, const struct iovec *iovs,
                       uint32_t count);

#endif
