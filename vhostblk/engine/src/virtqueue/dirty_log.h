/* SPDX-License-Identifier: Apache-2.0 */
/* Noting writes to guest memory for a migration.
 *
 * A page is noted after it was written and before the driver is shown the request that did it, with
 * an atomic operation even where the bit is set already: the front-end takes a bit away and then
 * copies the page, so our write must be visible before we look at the bit.
 */
#ifndef VHOSTBLK_DIRTY_LOG_H
#define VHOSTBLK_DIRTY_LOG_H

#include <stdint.h>
#include <sys/uio.h>

#include "guest_memory.h"

#include "dirty_log.cdef.h"

#define VB_DIRTY_PAGE 4096

/* Note [addr, addr + length) of guest memory; what is behind the log's end is ignored. */
static inline void vb_dirty_log_mark(const struct vb_dirty_log *log, uint64_t addr, uint64_t length)
{
    uint8_t *bits = (uint8_t *)(uintptr_t)log->bits;
    uint64_t page = addr / VB_DIRTY_PAGE, last;

    if (!length)
        return;
    last = (addr + length - 1) / VB_DIRTY_PAGE;
    for (; page <= last && page / 8 < log->size; page++)
        __atomic_fetch_or(&bits[page / 8], (uint8_t)(1 << page % 8), __ATOMIC_SEQ_CST);
}

/* The same for memory at a host address, which lies in one region. */
void vb_dirty_log_mark_host(const struct vb_dirty_log *log, const struct vb_memory *memory,
                            uint64_t host, uint64_t length);

/* The same for the first `limit` bytes of segments. */
void vb_dirty_log_mark_segments(const struct vb_dirty_log *log, const struct vb_memory *memory,
                                const struct iovec *iovs, uint32_t count, uint64_t limit);

#endif
