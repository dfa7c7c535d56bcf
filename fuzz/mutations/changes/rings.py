# SPDX-License-Identifier: Apache-2.0
"""Rings and guest memory, in both lanes; what a hostile guest could do with them."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_SPLIT = "vhostblk/virtqueue/split.py"
_PACKED = "vhostblk/virtqueue/packed.py"
_RING_C = "vhostblk/engine/src/virtqueue/ring.c"
_PACKED_H = "vhostblk/engine/src/virtqueue/packed.h"
_PACKED_C = "vhostblk/engine/src/virtqueue/packed.c"
_QUEUE_C = "vhostblk/engine/src/virtqueue/queue.c"
_PACKED_RECORD = "tests/virtqueue/test_packed_inflight.py"
_MEMORY = "vhostblk/virtqueue/memory.py"

_SPLIT_TESTS = ("tests/virtqueue/test_split_take.py", "tests/virtio_blk/test_queue.py",
                "tests/virtio_blk/test_queue_hostile.py")  # fmt: skip
_PACKED_TESTS = ("tests/virtqueue/test_packed_take.py", "tests/virtqueue/test_packed_property.py")
_WALKERS = ("tests/virtqueue/test_walker.py", "tests/virtqueue/test_walker_property.py",
            "tests/virtqueue/test_alike.py")  # fmt: skip
_DIFFERENTIAL = ("tests/engine/test_differential.py", "tests/engine/test_differential_packed.py")

MUTATIONS = (
    Mutation(
        "used-index-before-its-elements",
        _SPLIT,
        """
          count = len(heads)
          places = (self.next_used + np.arange(count)) & (self.size - 1)
        + store_release_u16(
        +     self._used_addr + layout.RING_INDEX_OFFSET, (self.next_used + count) & 0xFFFF
        + )
          elements = np.empty(count, layout.USED_ELEM)
        """,
        "The driver takes an old used element for a completion of the request that it names.",
        ("tests/virtqueue", "tests/virtio_blk/test_queue.py"),
    ),
    Mutation(
        "completion-before-its-status",
        "vhostblk/virtio_blk/queue.py",
        """
        - memory.span[addrs - memory.span_base] = statuses
          if self._written is not None:
              self._written.end(completed, memory)
          notify = self._ring.push(completed.heads, lengths)
        + memory.span[addrs - memory.span_base] = statuses
        """,
        "The driver reads the status of a failed write before it is written.",
        ("tests/exports/test_publication.py",),
    ),
    Mutation(
        "packed-first-descriptor-shown-first",
        _PACKED,
        """
          flags = _OWNER if self._next_used < self.size else 0
        + self._desc["id"][first] = heads[0]
        + self._show(first, flags | layout.DESC_F_WRITE if lengths[0] else flags)
          if number > 1:
        """,
        "The driver takes a descriptor as used before its content is written.",
        (f"{_PACKED_RECORD}::test_first_used_descriptor_of_a_burst_is_shown_last",),
    ),
    Mutation(
        "packed-engine-shows-at-once",
        _PACKED_H,
        """
          if (ring->unshown) {
        +     __atomic_store_n(&desc->flags, flags, __ATOMIC_RELAXED);
        + } else if (ring->size > 1) {
              __atomic_store_n(&desc->flags, flags, __ATOMIC_RELAXED);
        +     ring->first_unshown = ring->next_used;
        +     ring->first_flags = flags;
        - } else {
        + } else {
        """,
        "A completion is shown before it is noted in the record of requests in flight.",
        ("tests/engine/test_differential_packed.py::test_used_chains_are_shown_together",),
    ),
    Mutation(
        "head-twice-in-flight",
        _SPLIT,
        """
        - if self._in_flight.take(heads).any() or (self._marks.take(heads) != order).any():
        + if (self._marks.take(heads) != order).any():
        """,
        "One head is in flight twice, and its requests get each other's completions.",
        _SPLIT_TESTS,
    ),
    Mutation(
        "head-twice-in-a-burst",
        _SPLIT,
        """
        - if self._in_flight.take(heads).any() or (self._marks.take(heads) != order).any():
        + if self._in_flight.take(heads).any():
        """,
        "One head is in flight twice, and its requests get each other's completions.",
        _SPLIT_TESTS,
    ),
    Mutation(
        "head-out-of-range",
        _SPLIT,
        """
        - if int(heads.max()) >= self.size:
        + if int(heads.max()) > self.size:
        """,
        "Memory behind the descriptor table is used as a descriptor.",
        _SPLIT_TESTS,
    ),
    Mutation(
        "index-that-jumped",
        _SPLIT,
        """
        - if available > self.size:
        + if available > 2 * self.size:
        """,
        "Old requests are done again.",
        _SPLIT_TESTS,
    ),
    Mutation(
        "taken-twice",
        _SPLIT,
        """
          self._take(heads)
        - self.next_avail = (self.next_avail + count) & 0xFFFF
        + self.next_avail = (self.next_avail + available) & 0xFFFF
        """,
        "Requests beyond a burst are never done.",
        ("tests/virtqueue/test_split_take.py",),
    ),
    Mutation(
        "engine-head-twice-in-flight",
        _QUEUE_C,
        """
        - if (queue->slots[head].task.state != VB_TASK_FREE) {
        + if (queue->slots[head].task.state == VB_TASK_UP) {
              break_ring(queue, "a head was made available while in flight");
        """,
        "A slot is reused while the kernel writes from it.",
        ("tests/engine/test_queue.py",),
    ),
    Mutation(
        "engine-index-that-jumped",
        _QUEUE_C,
        """
        - if (available > ring->size) {
        + if (available > 2 * ring->size) {
        """,
        "Old requests are done again.",
        ("tests/engine/test_queue.py",),
    ),
    Mutation(
        "engine-takes-while-held",
        "vhostblk/engine/src/core/port.h",
        """
        - return !port->holds && !port->broken && !vb_port_full(port);
        + return port->holds <= 1 && !port->broken && !vb_port_full(port);
        """,
        "Requests begin inside a drained section.",
        ("tests/engine/test_queue.py",),
    ),
    Mutation(
        "packed-id-twice-in-flight",
        _PACKED,
        """
        - if self._in_flight.take(ids).any() or (self._marks.take(ids) != order).any():
        + if (self._marks.take(ids) != order).any():
        """,
        "One buffer id is in flight twice, and its requests get each other's completions.",
        _PACKED_TESTS,
    ),
    Mutation(
        "packed-full-ring-goes-on",
        _PACKED,
        """
        - if self._taken == self.size:
        -     return False
          wanted = PACKED_F_AVAIL if self._next_avail < self.size else PACKED_F_USED
        """,
        "Descriptors in flight are taken once more.",
        _PACKED_TESTS,
    ),
    Mutation(
        "packed-chain-runs-into-chains-in-flight",
        _PACKED_C,
        """
        - uint32_t room = ring->size - ring->taken, at = ring->next_avail, count = 0;
        + uint32_t room = ring->size, at = ring->next_avail, count = 0;
        """,
        "A chain continues with descriptors of one that is in flight.",
        ("tests/engine/test_queue.py",),
    ),
    Mutation(
        "packed-engine-full-ring-goes-on",
        _PACKED_H,
        """
      return (flags & VB_PACKED_OWNER) == (ring->avail_wrap ? VB_PACKED_AVAIL : VB_PACKED_USED) &&
    -        ring->taken < ring->size;
    +        ring->taken <= ring->size;
        """,
        "Descriptors in flight are taken once more.",
        ("tests/engine/test_queue.py",),
    ),
    Mutation(
        "packed-wrap-one-late",
        _PACKED_H,
        """
          if (next >= ring->size) {
              next -= ring->size;
        -     ring->used_wrap ^= 1;
        +     ring->used_wrap ^= next > 0;
        """,
        "The driver takes used descriptors of the last lap for those of this one.",
        ("tests/engine/test_queue.py",),
    ),
    Mutation(
        "used-elements-in-one-place",
        _SPLIT,
        """
        - places = (self.next_used + np.arange(count)) & (self.size - 1)
          elements = np.empty(count, layout.USED_ELEM)
        + places = np.minimum((self.next_used & (self.size - 1)) + np.arange(count), self.size - 1)
        """,
        "Completions at the end of the used ring overwrite each other.",
        ("tests/virtqueue", "tests/virtio_blk/test_queue.py"),
    ),
    Mutation(
        "order-of-buffers-not-judged",
        _RING_C,
        """
        - if (writing && !writes) {
        + if (writing && !writes && !(desc.flags & VB_DESC_F_NEXT)) {
              /* Whatever else is wrong: what comes from here on is not looked at. */
        """,
        "Data of a read overwrites a buffer that the guest gave as data to write.",
        _DIFFERENTIAL,
    ),
    Mutation(
        "next-descriptor-out-of-range",
        _RING_C,
        """
        - if (current >= entries) {
        + if (current > entries) {
              walk_fault = VB_FAULT_NEXT_OUT_OF_RANGE;
        """,
        "Memory behind the descriptor table is used as a descriptor.",
        _DIFFERENTIAL,
    ),
    Mutation(
        "buffer-longer-than-its-region",
        "vhostblk/engine/src/virtqueue/guest_memory.h",
        """
        - if (offset < region->size && length <= region->size - offset)
        + if (offset < region->size && length <= region->size)
              return region->host_addr + offset;
        """,
        "A read overwrites memory behind guest memory.",
        _DIFFERENTIAL,
    ),
    Mutation(
        "piece-of-the-wrong-length",
        "vhostblk/engine/src/virtqueue/guest_memory.c",
        """
        - return length < region->size - offset ? length : region->size - offset;
        + return length < region->size ? length : region->size - offset;
        """,
        "A buffer that crosses into the next region continues behind the first one.",
        _DIFFERENTIAL,
    ),
    Mutation(
        "memory-read-behind-the-region",
        _MEMORY,
        """
        - if region.guest_addr <= low and high + longest <= region.guest_addr + region.size:
        + if region.guest_addr <= low and high <= region.guest_addr + region.size:
              return index
        """,
        "A read overwrites memory behind guest memory.",
        ("tests/virtqueue/test_memory.py", *_WALKERS),
    ),
    Mutation(
        "memory-ends-late",
        _MEMORY,
        """
        - return np.where((room > 0) & (length <= room), host, np.uint64(0))
        + return np.where((room > 0) & (length <= room + np.uint64(1)), host, np.uint64(0))
        """,
        "A read overwrites memory behind guest memory.",
        ("tests/virtqueue/test_memory.py", *_WALKERS),
    ),
    Mutation(
        "ring-behind-its-region",
        _MEMORY,
        """
        - if 0 <= offset <= region.size - length:
        + if 0 <= offset < region.size:
        """,
        "The used ring is written behind guest memory.",
        ("tests/virtqueue/test_memory.py", "tests/virtqueue/test_split_take.py"),
    ),
    Mutation(
        "regions-that-overlap",
        _MEMORY,
        """
        - if getattr(before, name) + before.size > getattr(after, name):
        + if getattr(before, name) >= getattr(after, name):
        """,
        "One guest address stands for two places.",
        ("tests/virtqueue/test_memory.py",),
    ),
    Mutation(
        "region-removed-by-its-address",
        _MEMORY,
        """
        - return (self.guest_addr, self.size, self.user_addr) == (guest_addr, size, user_addr)
        + return self.guest_addr == guest_addr
        """,
        "A region that the guest uses is removed.",
        ("tests/virtqueue/test_memory.py",),
    ),
    Mutation(
        "walker-follows-out-of-range",
        "vhostblk/virtqueue/walker.py",
        """
        - outside = goes_on & (follow >= entries)
        + outside = goes_on & (follow > entries)
        """,
        "Memory behind the descriptor table is used as a descriptor.",
        _WALKERS,
    ),
    Mutation(
        "shortcut-out-of-order",
        "vhostblk/virtqueue/alike.py",
        """
        - if (writable[:, :-1] & ~writable[:, 1:]).any():
        + if (writable[:, :1] & ~writable[:, 1:]).any():
              return None
        """,
        "Data of a read overwrites a buffer that the guest gave as data to write.",
        _WALKERS,
    ),
    Mutation(
        "shortcut-follows-any-order",
        "vhostblk/virtqueue/alike.py",
        """
        - or (chains["next"][:, :-1] != np.arange(1, count, dtype=np.uint16)).any()
        """,
        "Segments of an indirect table are taken in the order of the table, and not of the chain.",
        _WALKERS,
    ),
    Mutation(
        "requests-past-the-end",
        "vhostblk/virtio_blk/request.py",
        """
        - inside = (sector <= capacity) & (sectors <= capacity - sector)
        + inside = (sector <= capacity) & (sectors <= capacity)
        """,
        "Data behind the disk in its file is overwritten.",
        ("tests/virtio_blk/test_request.py", "tests/virtio_blk/test_request_property.py"),
    ),
    Mutation(
        "requests-past-the-end-in-bursts",
        "vhostblk/virtio_blk/request.py",
        """
        - end = int(sector.max()) * SECTOR_SIZE + int(length.max())
        + end = int(sector.max()) * SECTOR_SIZE
        """,
        "Data behind the disk in its file is overwritten.",
        ("tests/virtio_blk/test_request.py", "tests/virtio_blk/test_request_property.py"),
    ),
    Mutation(
        "requests-of-half-blocks",
        "vhostblk/virtio_blk/request.py",
        """
        - ragged = (length | (sector * np.uint64(SECTOR_SIZE))) & (block - np.uint64(1))
        + ragged = length & (block - np.uint64(1))
        """,
        "Writes that are not whole blocks of the disk, which no driver means to do, are done.",
        ("tests/virtio_blk/test_request.py", "tests/virtio_blk/test_request_property.py"),
    ),
    Mutation(
        "discard-past-the-end",
        "vhostblk/virtio_blk/discard.py",
        """
        - if sectors > MAX_REQUEST_SECTORS or offset + length > size:
        + if sectors > MAX_REQUEST_SECTORS or offset > size:
        """,
        "Data behind the disk in its file is discarded.",
        ("tests/virtio_blk/test_discard.py", "tests/virtio_blk/test_device.py"),
    ),
    Mutation(
        "discard-request-of-half-blocks",
        "vhostblk/virtio_blk/discard.py",
        """
        - if (offset | length) % logical_block_size:
        + if offset % logical_block_size:
        """,
        "A discard discards part of a block that the guest still uses.",
        ("tests/virtio_blk/test_discard.py", "tests/virtio_blk/test_device.py"),
    ),
    Mutation(
        "discard-unmaps-what-was-to-stay",
        "vhostblk/virtio_blk/device.py",
        """
        - flags = WriteFlags.MAY_UNMAP if part.unmap else WriteFlags.NONE
        + flags = WriteFlags.MAY_UNMAP
        """,
        "Zeroes that should keep their storage lose it: a later write finds the file system full.",
        ("tests/virtio_blk",),
    ),
)
