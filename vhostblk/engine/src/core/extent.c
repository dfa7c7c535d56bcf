/* SPDX-License-Identifier: Apache-2.0 */
#include "extent.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#define ENTRY_FLAGS 511ull

/* A range of clusters is one request where all of them may be used alike and lie in one piece. */
static enum vb_extent_verdict lookup_table(const struct vb_extent_map *map, uint64_t offset,
                                           uint64_t length, enum vb_extent_access access,
                                           uint64_t *file_offset)
{
    uint64_t cluster = 1ull << map->cluster_bits;
    uint64_t first = offset >> map->cluster_bits;
    uint64_t last = (offset + length - 1) >> map->cluster_bits;
    /* Entries change under our hands: each is read once, whole. */
    uint64_t entry = __atomic_load_n(&map->table[first], __ATOMIC_ACQUIRE);
    uint64_t wanted = access == VB_ACCESS_READ ? VB_ENTRY_READ : VB_ENTRY_OVERWRITE;
    uint64_t bars = access == VB_ACCESS_WRITE_THROUGH ? VB_ENTRY_VOLATILE : 0;

    if (access == VB_ACCESS_READ && entry & VB_ENTRY_ZERO) {
        for (uint64_t i = first + 1; i <= last; i++)
            if (!(__atomic_load_n(&map->table[i], __ATOMIC_ACQUIRE) & VB_ENTRY_ZERO))
                return VB_GO_UP;
        return VB_GO_ZERO;
    }
    if (!(entry & wanted) || entry & bars)
        return VB_GO_UP;
    *file_offset = (entry & ~ENTRY_FLAGS) + (offset & (cluster - 1));
    for (uint64_t i = first + 1; i <= last; i++) {
        uint64_t next = __atomic_load_n(&map->table[i], __ATOMIC_ACQUIRE);

        if (!(next & wanted) || next & bars ||
            (next & ~ENTRY_FLAGS) != (entry & ~ENTRY_FLAGS) + cluster)
            return VB_GO_UP;
        entry = next;
    }
    return VB_GO_FILE;
}

enum vb_extent_verdict vb_extent_lookup(const struct vb_extent_map *map, uint64_t offset,
                                        uint64_t length, enum vb_extent_access access,
                                        uint64_t *file_offset)
{
    bool write = access != VB_ACCESS_READ;

    if (!map || !length || offset > map->size || length > map->size - offset)
        return VB_GO_UP;
    if (write && !(map->flags & VB_EXTENT_WRITE))
        return VB_GO_UP;
    switch (map->kind) {
    case VB_EXTENT_NULL:
        return !write && map->flags & VB_EXTENT_READ_ZEROES ? VB_GO_ZERO : VB_GO_NULL;
    case VB_EXTENT_LINEAR:
        *file_offset = map->offset + offset;
        return VB_GO_FILE;
    case VB_EXTENT_TABLE:
        return lookup_table(map, offset, length, access, file_offset);
    default:
        return VB_GO_UP;
    }
}

bool vb_extent_aligned(const struct vb_extent_map *map, uint64_t offset, const struct iovec *iovs,
                       uint32_t count)
{
    uint64_t bits = offset;

    if (map->alignment <= 1)
        return true;
    for (uint32_t i = 0; i < count; i++)
        bits |= (uint64_t)(uintptr_t)iovs[i].iov_base | iovs[i].iov_len;
    return !(bits & (map->alignment - 1));
}

int vb_file_in_memory(int fd)
{
    struct statfs info;

    return !fstatfs(fd, &info) && (info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC);
}
