# SPDX-License-Identifier: Apache-2.0
"""Records of requests in flight, and dirty logs: each store in its order, in both lanes."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_SPLIT = "vhostblk/virtqueue/split.py"
_PACKED = "vhostblk/virtqueue/packed.py"
_INFLIGHT = "vhostblk/virtqueue/inflight.py"
_INFLIGHT_PACKED = "vhostblk/virtqueue/inflight_packed.py"
_INFLIGHT_H = "vhostblk/engine/src/virtqueue/inflight.h"
_INFLIGHT_PACKED_H = "vhostblk/engine/src/virtqueue/inflight_packed.h"
_PUBLISH_C = "vhostblk/engine/src/virtqueue/publish.c"
_QUEUE_C = "vhostblk/engine/src/virtqueue/queue.c"
_QUEUE = "vhostblk/virtio_blk/queue.py"
_EXPRESS = "vhostblk/virtio_blk/express.py"
_QUEUE_SET = "vhostblk/virtio_blk/queue_set.py"

_DEATHS = ("tests/stores/test_deaths.py",)
_LOGS = ("tests/stores/test_log.py", "tests/exports/test_dirty_logging.py")
_LEFT = ("tests/exports/test_left_requests.py",)

MUTATIONS = (
    Mutation(
        "record-head-noted-before-its-number",
        _INFLIGHT_H,
        """
        - __atomic_store_n(&desc->counter, inflight->counter++, __ATOMIC_RELAXED);
          __atomic_store_n(&desc->inflight, 1, __ATOMIC_RELEASE);
        + __atomic_store_n(&desc->counter, inflight->counter++, __ATOMIC_RELAXED);
        """,
        "After a kill, requests are done again in another order.",
        _DEATHS,
    ),
    Mutation(
        "record-used-index-before-its-heads-are-linked",
        _PUBLISH_C,
        """
        - if (queue->inflight.region)
        -     vb_inflight_link(&queue->inflight, queue->unpublished);
          if (__builtin_expect(queue->log.used, 0))
              log_used_elements(queue);
          wanted = vb_ring_publish(&queue->ring, queue->unpublished);
        + if (queue->inflight.region)
        +     vb_inflight_link(&queue->inflight, queue->unpublished);
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "record-struck-out-before-it-is-shown",
        _PUBLISH_C,
        """
        + if (queue->inflight.region)
        +     vb_inflight_strike_out(&queue->inflight, queue->unpublished, queue->ring.next_used);
          wanted = vb_ring_publish(&queue->ring, queue->unpublished);
          vb_queue_log_used(queue, VB_USED_INDEX, sizeof(uint16_t));
        - if (queue->inflight.region)
        -     vb_inflight_strike_out(&queue->inflight, queue->unpublished, queue->ring.next_used);
        """,
        "After a kill, a request is in no record, and is never completed.",
        _DEATHS,
    ),
    Mutation(
        "record-list-begins-before-its-links",
        _INFLIGHT_H,
        """
    struct vb_inflight_region *region = inflight->region;

  + if (count)
  +     __atomic_store_n(&region->last_batch_head,
  +                      inflight->done[(count - 1) & inflight->mask], __ATOMIC_RELEASE);
    for (uint16_t i = 0; i < count; i++) {
        uint16_t head = inflight->done[i & inflight->mask];

        __atomic_store_n(&region->desc[head].next, inflight->last_batch_head, __ATOMIC_RELAXED);
        inflight->last_batch_head = head;
    }
  - __atomic_store_n(&region->last_batch_head, inflight->last_batch_head, __ATOMIC_RELEASE);
        """,
        "After a kill, the list of used heads has random entries.",
        _DEATHS,
        equivalent="Before the used index is shown nobody follows the list: none of it counts as "
        "shown, and the next process begins a list of its own.",
    ),
    Mutation(
        "record-list-does-not-go-back",
        _INFLIGHT_H,
        """
          __atomic_store_n(&region->desc[head].next, inflight->last_batch_head, __ATOMIC_RELAXED);
        - inflight->last_batch_head = head;
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "record-used-index-before-heads-are-struck-out",
        _INFLIGHT_H,
        """
          __atomic_thread_fence(__ATOMIC_RELEASE);
        + __atomic_store_n(&region->used_idx, used_idx, __ATOMIC_RELEASE);
          for (uint16_t i = 0; i < count; i++)
              __atomic_store_n(&region->desc[inflight->done[i & inflight->mask]].inflight, 0,
                               __ATOMIC_RELAXED);
        - __atomic_store_n(&region->used_idx, used_idx, __ATOMIC_RELEASE);
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "record-one-head-struck-out",
        _INFLIGHT_H,
        """
        - for (uint16_t i = 0; i < count; i++)
        + for (uint16_t i = 0; i < count && i < 1; i++)
              __atomic_store_n(&region->desc[inflight->done[i & inflight->mask]].inflight, 0,
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "record-noted-after-the-request-began",
        _QUEUE_C,
        """
          ring->next_avail++;
        - if (queue->inflight.region)
        -     vb_inflight_take(&queue->inflight, head);
          take(queue, head);
        + if (queue->inflight.region)
        +     vb_inflight_take(&queue->inflight, head);
        """,
        "After a kill, a request that was started is in no record.",
        _DEATHS,
        equivalent="The next process takes anew what was not noted, behind all that was: it is "
        "done again, as it is where it was noted.",
    ),
    Mutation(
        "record-left-requests-behind-new-ones",
        _QUEUE_C,
        """
        - if (vb_queue_left(queue)) {
        + if (vb_queue_left(queue) && (ring->packed || !vb_ring_available(ring))) {
              take_left(queue);
              return true;
          }
        """,
        "After a kill, an old write is done after a new one, and undoes it.",
        _DEATHS,
    ),
    Mutation(
        "record-left-requests-in-the-order-of-heads",
        _INFLIGHT,
        """
        - return heads[np.argsort(counters, kind="stable")].astype(np.uint16)
        + return heads.astype(np.uint16)
        """,
        "After a kill, requests are done again in another order.",
        ("tests/virtqueue/test_inflight.py", *_DEATHS),
    ),
    Mutation(
        "record-numbers-begin-anew",
        _INFLIGHT,
        """
          if len(heads):
        -     self.counter = (int(counters.max()) + 1) & 0xFFFF_FFFF_FFFF_FFFF
        +     self.counter = 0
          return heads[np.argsort(counters, kind="stable")].astype(np.uint16)
        """,
        "After two kills, requests are done again in another order.",
        ("tests/virtqueue/test_inflight.py", *_DEATHS),
    ),
    Mutation(
        "record-shown-heads-not-struck-out",
        _INFLIGHT,
        """
        - self._strike_out(shown, size)
          self._header["used_idx"] = used_idx

        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "record-opened-without-the-used-index",
        _INFLIGHT,
        """
          self._strike_out(shown, size)
        - self._header["used_idx"] = used_idx

        """,
        "After two kills, heads in flight are removed: requests are never done.",
        _DEATHS,
    ),
    Mutation(
        "record-valid-before-it-is-empty",
        _INFLIGHT,
        """
          if version == 0:
        +     self._header["version"] = INFLIGHT_VERSION
              self._desc["inflight"] = 0
              self._header["desc_num"] = queue_size
              self._header["last_batch_head"] = 0
              self._header["used_idx"] = used_idx
        -     self._header["version"] = INFLIGHT_VERSION
              return np.empty(0, np.uint16)
        """,
        "A kill while a record is made: the next one takes garbage for requests.",
        _DEATHS,
    ),
    Mutation(
        "record-python-head-noted-before-its-number",
        _INFLIGHT,
        """
        - self._desc["counter"][heads] = numbers
          self._desc["inflight"][heads] = 1  # one store after the other, in this order
        + self._desc["counter"][heads] = numbers
        """,
        "After a kill, requests are done again in another order.",
        _DEATHS,
    ),
    Mutation(
        "record-python-heads-noted-in-any-order",
        _INFLIGHT,
        """
        - self._desc["inflight"][heads] = 1  # one store after the other, in this order
        + self._desc["inflight"][heads[::-1]] = 1
        """,
        "A kill in between: the next one takes recorded requests as new, and skips others.",
        _DEATHS,
    ),
    Mutation(
        "record-python-used-index-before-its-heads-are-linked",
        _SPLIT,
        """
        - if self.inflight is not None:
        -     self.inflight.link(heads)
          if self._log is not None:
              self._log_elements(self._log, old, count)
          store_release_u16(self._used_addr + layout.RING_INDEX_OFFSET, self.next_used)
        + if self.inflight is not None:
        +     self.inflight.link(heads)
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "record-python-struck-out-before-it-is-shown",
        _SPLIT,
        """
        + if self.inflight is not None:
        +     self.inflight.strike_out(heads, self.next_used)
          store_release_u16(self._used_addr + layout.RING_INDEX_OFFSET, self.next_used)
          if self._log is not None:
              self._log.mark_used(layout.RING_INDEX_OFFSET, 2)
              self._log.signal()
        - if self.inflight is not None:
        -     self.inflight.strike_out(heads, self.next_used)
        """,
        "After a kill, a request is in no record, and is never completed.",
        _DEATHS,
    ),
    Mutation(
        "record-python-used-index-before-heads-are-struck-out",
        _INFLIGHT,
        """
        - self._desc["inflight"][heads] = 0
          self._header["used_idx"] = used_idx
        + self._desc["inflight"][heads] = 0
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "record-python-list-without-its-end",
        _INFLIGHT,
        """
        - following[0] = self._last_batch_head
        + following[0] = 0
          following[1:] = heads[:-1]
        """,
        "A process that follows the list across bursts removes heads that are in flight.",
        _DEATHS,
    ),
    Mutation(
        "record-begins-behind-what-is-left",
        _SPLIT,
        """
        - self.next_avail = (self.next_used + len(self.left)) & 0xFFFF
        + self.next_avail = self.next_used
        """,
        "After a kill, requests are done twice.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-taken-before-it-is-noted",
        _INFLIGHT_PACKED_H,
        """
        + inflight->free_head = inflight->old_free_head = entry;
        + __atomic_store_n(&region->heads, entry | (uint32_t)entry << 16, __ATOMIC_RELEASE);
          __atomic_store_n(&head->inflight, 1, __ATOMIC_RELEASE);
        - inflight->free_head = inflight->old_free_head = entry;
        - __atomic_store_n(&region->heads, entry | (uint32_t)entry << 16, __ATOMIC_RELEASE);
        """,
        "A kill in between: entries are in no list, and the record is refused as corrupt.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-without-its-number",
        _INFLIGHT_PACKED_H,
        """
        - head->counter = inflight->counter++;
          __atomic_store_n(&head->inflight, 1, __ATOMIC_RELEASE);
        """,
        "After a kill, requests are done again in another order.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-place-before-the-list",
        _INFLIGHT_PACKED_H,
        """
          inflight->free_head = head;
        + __atomic_store_n(&region->places,
        +                  vb_inflight_packed_places(ring, false) | inflight->old_places,
        +                  __ATOMIC_RELEASE);
          __atomic_store_n(&region->heads, head | (uint32_t)inflight->old_free_head << 16,
                           __ATOMIC_RELEASE);
        - __atomic_store_n(&region->places,
        -                  vb_inflight_packed_places(ring, false) | inflight->old_places,
        -                  __ATOMIC_RELEASE);
          __atomic_thread_fence(__ATOMIC_RELEASE);
        """,
        "A kill in between: the new ring position is recorded with the old list.",
        _DEATHS,
        equivalent="The old place and the old list are gone by until the ring shows the burst, "
        "which comes after both.",
    ),
    Mutation(
        "packed-record-linked-after-it-is-shown",
        _PUBLISH_C,
        """
  - if (inflight->region)
  -     vb_inflight_packed_link(inflight, &queue->ring, queue->inflight.done, queue->unpublished);
    wanted = vb_packed_publish(&queue->ring);
  + if (inflight->region)
  +     vb_inflight_packed_link(inflight, &queue->ring, queue->inflight.done, queue->unpublished);
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-struck-out-before-it-is-shown",
        _PUBLISH_C,
        """
        + if (inflight->region)
        +     vb_inflight_packed_strike_out(inflight, &queue->ring, queue->inflight.done,
        +                                   queue->unpublished);
          wanted = vb_packed_publish(&queue->ring);
          if (__builtin_expect(queue->log.used, 0))
              log_used_descs(queue, first, count);
        - if (inflight->region)
        -     vb_inflight_packed_strike_out(inflight, &queue->ring, queue->inflight.done,
        -                                   queue->unpublished);
        """,
        "After a kill, a request is in no record, and is never completed.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-old-place-before-heads-are-struck-out",
        _INFLIGHT_PACKED_H,
        """
          __atomic_thread_fence(__ATOMIC_RELEASE);
        + __atomic_store_n(&region->places,
        +                  vb_inflight_packed_places(ring, false) |
        +                      vb_inflight_packed_places(ring, true), __ATOMIC_RELEASE);
          for (uint32_t i = 0; i < count; i++) {
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-python-taken-before-it-is-noted",
        _INFLIGHT_PACKED,
        """
        + self._store_heads(entry, entry)
          self._desc["inflight"][heads] = 1
        - self._store_heads(entry, entry)
          self.first[ids], self.last[ids] = heads, lasts
        """,
        "A kill in between: entries are in no list, and the record is refused as corrupt.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-python-noted-before-its-copy",
        _INFLIGHT_PACKED,
        """
        + self._desc["inflight"][heads] = 1
          for name in _COPIED:
              self._desc[name][entries] = descriptors[name]
        ...
        - self._desc["inflight"][heads] = 1
          self._store_heads(entry, entry)
          self.first[ids], self.last[ids] = heads, lasts
        """,
        "A kill in between: a request has the descriptors of another one.",
        _DEATHS,
        equivalent="Until the free list has gone on, its entries count as free, whatever they say.",
    ),
    Mutation(
        "packed-record-python-linked-after-it-is-shown",
        _PACKED,
        """
        - if self.inflight is not None:
        -     self.inflight.link(heads, next_used)
          flags = _OWNER if self._next_used < self.size else 0
        ...
          self._show(first, flags | layout.DESC_F_WRITE if lengths[0] else flags)
        + if self.inflight is not None:
        +     self.inflight.link(heads, next_used)
          if self._log is not None:
              self._log_used(first, total)
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-python-struck-out-before-it-is-shown",
        _PACKED,
        """
          self._next_used = next_used
        + if self.inflight is not None:
        +     self.inflight.strike_out(heads)
          self._show(first, flags | layout.DESC_F_WRITE if lengths[0] else flags)
        ...
              self._log.signal()
        - if self.inflight is not None:
        -     self.inflight.strike_out(heads)
          fence()
        """,
        "After a kill, a request is in no record, and is never completed.",
        _DEATHS,
    ),
    Mutation(
        "packed-record-what-was-shown-is-not-looked-at",
        _INFLIGHT_PACKED,
        """
        - if place != old_place and self._was_shown(flags_at(old_place), old_place):
        + if place != old_place and self._was_shown(flags_at(place), place):
              old_place, old_head = place, head
        """,
        "After a kill, a write that the driver saw completed is repeated, over later ones.",
        _DEATHS,
    ),
    Mutation(
        "packed-burst-that-was-not-shown-stays-in-the-ring",
        _PACKED,
        """
          self._next_avail = self._ahead(self._next_used, self._taken)
        - self._hide_unshown()
        """,
        "After a kill, the driver takes old used descriptors for those of the next burst.",
        _DEATHS,
    ),
    Mutation(
        "base-of-a-queue-with-requests-left",
        _QUEUE_SET,
        """
          async with self._changing:
        -     await self._finish_left(self._running[index].queue)
              next_avail = await self._retire(index)
        """,
        "The base skips requests of an earlier process, and nobody does them.",
        _LEFT,
    ),
    Mutation(
        "base-of-a-disabled-queue-with-requests-left",
        _QUEUE_SET,
        """
          disabled = queue.index not in self.enabled
        - if disabled:
        -     queue.release()
          try:
              if not self._leaving:
        ...
          finally:
        -     if disabled:
        -         queue.hold()
        +     assert disabled is not None
          if left := queue.limit_to_left():
        """,
        "A disabled queue that stops waits for ever for requests of an earlier process.",
        _LEFT,
    ),
    Mutation(
        "base-though-requests-were-abandoned",
        _QUEUE_SET,
        """
          if left := queue.limit_to_left():
        -     raise SetupError(
        -         f"queue {queue.index}: {left} requests of an earlier process are not done"
        -     )
        +     assert left
        """,
        "The base skips requests of an earlier process, and nobody does them.",
        _LEFT,
    ),
    Mutation(
        "left-requests-and-new-ones",
        _QUEUE,
        """
          ring = self._ring
        - if self._left_only and not len(ring.left):
        -     return
          ring.disable_notifications()
        """,
        "A queue that stops takes new requests as long as there are any.",
        _LEFT,
    ),
    Mutation(
        "engine-left-requests-and-new-ones",
        _QUEUE_C,
        """
        - if (queue->left_only)
        -     return false;
          if (ring->packed)
              return sweep_packed(queue);
        """,
        "A queue that stops takes new requests as long as there are any.",
        _LEFT,
    ),
    Mutation(
        "engine-does-not-tell-that-all-are-taken",
        _QUEUE_C,
        """
          vb_run_finish(&queue->port);
        - if (queue->left_only && !vb_queue_left(queue))
        -     vb_port_news(&queue->port);
        """,
        "A queue that stops waits for ever for requests of an earlier process.",
        _LEFT,
    ),
    Mutation(
        "left-requests-count-as-taken",
        _EXPRESS,
        """
        - left: int = self._lib.vb_queue_left_count(self._queue)
          return left
        + left = 0
        """,
        "The base skips requests of an earlier process, and nobody does them.",
        _LEFT,
    ),
    Mutation(
        "record-lost-with-the-lane",
        _QUEUE_SET,
        """
        - kick, wires = running.queue.kick_copy(), running.wires
        + kick, wires = running.queue.kick_copy(), replace(running.wires, record=None)
        """,
        "A queue that changes lanes loses its record: after a kill its requests are lost.",
        ("tests/exports",),
    ),
    Mutation(
        "log-read-noted-before-it-is-written",
        _QUEUE,
        """
          requests = parse(batch, device.backend.size, device.logical_block_size)
          if self._written is not None:
              self._written.begin(requests)
        +     segments = requests.iovs
        +     self._written._log.mark_host(ring.memory, segments["base"], segments["len"])
        +     self._written._buffers.clear()
          self._runner.start(requests)
        """,
        "A migration copies a page before a read has put its data there.",
        _LOGS,
    ),
    Mutation(
        "log-status-noted-before-it-is-written",
        _QUEUE,
        """
        - memory.span[addrs - memory.span_base] = statuses
          if self._written is not None:
              self._written.end(completed, memory)
        + memory.span[addrs - memory.span_base] = statuses
          notify = self._ring.push(completed.heads, lengths)
        """,
        "A migration copies a page before the status is written.",
        _LOGS,
    ),
    Mutation(
        "log-noted-after-it-is-shown",
        _QUEUE,
        """
        - if self._written is not None:
        -     self._written.end(completed, memory)
          notify = self._ring.push(completed.heads, lengths)
        + if self._written is not None:
        +     self._written.end(completed, memory)
        """,
        "A kill in between: a read counts as done whose data the migration lacks.",
        _LOGS,
    ),
    Mutation(
        "log-engine-noted-before-the-status",
        "vhostblk/engine/src/virtqueue/slot.c",
        """
        + if (__builtin_expect(queue->log.data, 0))
        +     log_request(slot, status, written);
          if (slot->request.status_addr) {
        ...
        - if (__builtin_expect(queue->log.data, 0))
        -     log_request(slot, status, written);
          count(queue, slot, status);
        """,
        "A migration copies a page before the status is written.",
        _LOGS,
    ),
    Mutation(
        "log-used-index-noted-before-it-is-written",
        _PUBLISH_C,
        """
        + vb_queue_log_used(queue, VB_USED_INDEX, sizeof(uint16_t));
          wanted = vb_ring_publish(&queue->ring, queue->unpublished);
        - vb_queue_log_used(queue, VB_USED_INDEX, sizeof(uint16_t));
        """,
        "A migration copies the used index before the last requests are in it.",
        _LOGS,
    ),
    Mutation(
        "log-packed-noted-before-it-is-written",
        _PUBLISH_C,
        """
        + if (__builtin_expect(queue->log.used, 0))
        +     log_used_descs(queue, first, count);
          wanted = vb_packed_publish(&queue->ring);
        - if (__builtin_expect(queue->log.used, 0))
        -     log_used_descs(queue, first, count);
        """,
        "A migration copies the ring before the last requests are in it.",
        _LOGS,
    ),
    Mutation(
        "log-used-elements-over-the-end",
        _PUBLISH_C,
        """
        - vb_queue_log_used(queue, VB_USED_ELEMENTS, (uint64_t)(count - before_end) * bytes);
        """,
        "Used elements at the beginning of the ring are missing at the destination.",
        _LOGS,
    ),
    Mutation(
        "log-python-used-index-noted-before-it-is-written",
        _SPLIT,
        """
        + if self._log is not None:
        +     self._log.mark_used(layout.RING_INDEX_OFFSET, 2)
          store_release_u16(self._used_addr + layout.RING_INDEX_OFFSET, self.next_used)
          if self._log is not None:
        -     self._log.mark_used(layout.RING_INDEX_OFFSET, 2)
              self._log.signal()
        """,
        "A migration copies the used index before the last requests are in it.",
        _LOGS,
    ),
    Mutation(
        "log-python-packed-noted-before-it-is-written",
        _PACKED,
        """
          self._next_used = next_used
        + if self._log is not None:
        +     self._log_used(first, total)
          self._show(first, flags | layout.DESC_F_WRITE if lengths[0] else flags)
          if self._log is not None:
        -     self._log_used(first, total)
              self._log.signal()
        """,
        "A migration copies the ring before the last requests are in it.",
        _LOGS,
    ),
    Mutation(
        "log-python-used-elements-over-the-end",
        _SPLIT,
        """
        - log.mark_used(layout.RING_HEADER_SIZE, size * (count - before_end))
        """,
        "Used elements at the beginning of the ring are missing at the destination.",
        _LOGS,
    ),
    Mutation(
        "log-kick-request-not-noted",
        _QUEUE_C,
        """
          vb_ring_enable_kicks(&queue->ring);
        - log_kick_request(queue);
        """,
        "At the destination the driver sees an outdated request for kicks: the disk hangs.",
        _LOGS,
    ),
    Mutation(
        "log-exchanged-without-the-ring",
        _PUBLISH_C,
        """
        - log_whole_ring(queue, copy);
          vb_port_tell(&queue->port, queue->port.iothread, set_log, 0, copy);
        """,
        "Entries of a used ring from before the log are missing at the destination.",
        _LOGS,
    ),
)
