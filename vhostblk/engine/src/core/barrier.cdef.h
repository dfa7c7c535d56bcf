/* SPDX-License-Identifier: Apache-2.0 */
/* Memory ordering that Python itself cannot express; addresses are those of guest memory. */
uint16_t vb_load_acquire_u16(uintptr_t address);
void vb_store_release_u16(uintptr_t address, uint16_t value);
void vb_fence(void);
