/* SPDX-License-Identifier: Apache-2.0
 *
 * One virtqueue of a virtio-blk device, driver's side.
 */
#ifndef QUEUE_H
#define QUEUE_H

#include "loadgen.h"

/* Get ready for a run that starts at `now`. */
void queue_start(struct lg_queue *queue, uint64_t now);

/* Make available what is due and fits, and kick if the device asks for it. Returns the number of
 * requests made, or -1 (`worker` tells why). */
int queue_submit(struct lg_worker *worker, uint32_t index, uint64_t now);

/* Are there completions to reap? */
bool queue_has_used(const struct lg_queue *queue);

/* Take the completions. Returns their number, or -1. */
int queue_reap(struct lg_worker *worker, uint32_t index, uint64_t now);

/* Ask for an interrupt with the next completion, or for none. */
void queue_arm_interrupt(struct lg_queue *queue);
void queue_suppress_interrupts(struct lg_queue *queue);

uint16_t queue_in_flight(const struct lg_queue *queue);

/* Has the queue made all the requests it was asked for? */
bool queue_exhausted(const struct lg_queue *queue);

/* Note the failure; returns -1. */
int worker_fail(struct lg_worker *worker, int error, uint32_t queue, uint64_t block,
                uint64_t expected, uint64_t found);

#endif
