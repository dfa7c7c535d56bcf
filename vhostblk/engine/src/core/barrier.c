/* SPDX-License-Identifier: Apache-2.0 */
#include "barrier.h"

uint16_t vb_load_acquire_u16(uintptr_t address)
{
    return __atomic_load_n((const uint16_t *)address, __ATOMIC_ACQUIRE);
}

void vb_store_release_u16(uintptr_t address, uint16_t value)
{
    __atomic_store_n((uint16_t *)address, value, __ATOMIC_RELEASE);
}

void vb_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
