/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VHOSTBLK_NOTIFY_H
#define VHOSTBLK_NOTIFY_H

#include "notify.cdef.h"

/* Free what the calling thread's notifications need. */
void vb_notify_end(void);

#endif
