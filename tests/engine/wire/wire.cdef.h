/* SPDX-License-Identifier: Apache-2.0 */
/* Make a port for a connected socket, of which it has a duplicate, to a disk of `size` bytes. */
struct vb_port *wire_new(struct vb_iothread *iothread, int fd, uint64_t size);
