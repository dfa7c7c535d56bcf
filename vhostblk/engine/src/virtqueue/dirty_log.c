/* SPDX-License-Identifier: Apache-2.0 */
#include "dirty_log.h"

void vb_dirty_log_mark_host(const struct vb_dirty_log *log, const struct vb_memory *memory,
                            uint64_t host, uint64_t length)
{
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct vb_region *region = &memory->regions[i];
        uint64_t offset = host - region->host_addr;

        if (offset < region->size) {
            vb_dirty_log_mark(log, region->guest_addr + offset, length);
            return;
        }
    }
}

void vb_dirty_log_mark_segments(const struct vb_dirty_log *log, const struct vb_memory *memory,
                                const struct iovec *iovs, uint32_t count, uint64_t limit)
{
    for (uint32_t i = 0; i < count && limit; i++) {
        uint64_t length = iovs[i].iov_len < limit ? iovs[i].iov_len : limit;

        vb_dirty_log_mark_host(log, memory, (uint64_t)(uintptr_t)iovs[i].iov_base, length);
        limit -= length;
    }
}

void vb_dirty_log_mark_all(const struct vb_dirty_log *log, uint32_t n, const uint64_t *addrs,
                           const uint64_t *lengths)
{
    for (uint32_t i = 0; i < n; i++)
        vb_dirty_log_mark(log, addrs[i], lengths[i]);
}
