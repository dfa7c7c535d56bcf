/* SPDX-License-Identifier: Apache-2.0 */
/* Eventfds that a peer shares. It may take O_NONBLOCK away, keep the counter full, and read what is
 * there to be read, at any time; these calls don't wait in any case. */

/* Add one; a counter that is full stays so. */
void vb_notify(int fd);

/* Reset to 0. */
void vb_notify_clear(int fd);
