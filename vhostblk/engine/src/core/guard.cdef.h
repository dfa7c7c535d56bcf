/* SPDX-License-Identifier: Apache-2.0 */
/* Mapped files of a peer, who may truncate them at any time. Access behind a file's end raises SIGBUS;
 * for a guarded range the handler puts an empty page there instead, and the range counts as lost. Other
 * SIGBUS go to whatever handler there was before. */

/* Guard [start, start + length); both are multiples of `page`, the mapping's page size. When it gets
 * lost, `event_fd` is signalled. Returns what `vb_guard_remove` takes, NULL: out of memory. */
struct vb_guard *vb_guard_add(uint64_t start, uint64_t length, uint64_t page, int event_fd);
void vb_guard_remove(struct vb_guard *guard);
int vb_guard_lost(const struct vb_guard *guard);
