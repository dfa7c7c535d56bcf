/* SPDX-License-Identifier: Apache-2.0 */
/* Eventfds that a peer shares. It may take O_NONBLOCK away, keep the counter full, and read what is
 * there to be read, at any time; these calls don't wait in any case. `vhostblk.virtqueue.nowait` is
 * the same for Python.
 */
#ifndef VHOSTBLK_NOTIFY_H
#define VHOSTBLK_NOTIFY_H

/* Add one; a counter that is full stays so. */
void vb_notify(int fd);

/* Reset to 0. */
void vb_notify_clear(int fd);

/* Free what the calling thread's notifications need. */
void vb_notify_end(void);

#endif
