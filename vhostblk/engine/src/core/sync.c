/* SPDX-License-Identifier: Apache-2.0 */
#include "sync.h"

#include <sys/eventfd.h>

int vb_sync_try(struct vb_sync *sync, uint32_t holder)
{
    uint32_t nobody = 0;

    return __atomic_compare_exchange_n(&sync->holders, &nobody, holder, 0, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED);
}

int vb_sync_claim(struct vb_sync *sync)
{
    return !(__atomic_fetch_or(&sync->holders, VB_SYNC_PYTHON, __ATOMIC_ACQ_REL) & VB_SYNC_ENGINE);
}

void vb_sync_end(struct vb_sync *sync, uint32_t holder)
{
    uint32_t before = __atomic_fetch_and(&sync->holders, ~holder, __ATOMIC_ACQ_REL);

    if (before & ~holder)
        eventfd_write(sync->event_fd, 1);
}
