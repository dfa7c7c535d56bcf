/* SPDX-License-Identifier: Apache-2.0 */
/* A timer as a descriptor that becomes readable, on CLOCK_MONOTONIC; negative: -errno. */
int vb_timer_new(void);

/* Expire in `wait` ns; 0: don't. */
void vb_timer_set(int fd, uint64_t wait);
