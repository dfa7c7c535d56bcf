/* SPDX-License-Identifier: Apache-2.0 */
/* The dirty log of a migration (vhost-user, "Migration"): a bitmap, shared with the front-end, of the
 * pages of guest memory that have been written. Others write to it at the same time. */
struct vb_dirty_log {
    uint64_t bits;      /* host address */
    uint64_t size;      /* bytes */
    uint64_t used_addr; /* guest address at which writes to the used ring are noted */
    int32_t event_fd;   /* signalled when something has been noted; -1: none */
    uint8_t data;       /* note what is written for requests */
    uint8_t used;       /* note what is written to the used ring */
};

/* Note `n` ranges of guest memory, which have been written. */
void vb_dirty_log_mark_all(const struct vb_dirty_log *log, uint32_t n, const uint64_t *addrs,
                           const uint64_t *lengths);
