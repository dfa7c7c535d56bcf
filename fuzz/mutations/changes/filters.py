# SPDX-License-Identifier: Apache-2.0
"""Filters, and copying by clusters."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_CBW = "vhostblk/block/drivers/copy_before_write.py"
_COR = "vhostblk/block/drivers/copy_on_read.py"
_COPY = "vhostblk/block/copy/block_copy.py"
_QUORUM = "vhostblk/block/drivers/quorum.py"
_PREALLOCATE = "vhostblk/block/drivers/preallocate.py"

_CBW_TESTS = ("tests/filters/test_copy_before_write.py",)
_COR_TESTS = ("tests/filters/test_copy_on_read.py",)
_QUORUM_TESTS = ("tests/block/test_quorum.py",)
_PREALLOCATE_TESTS = ("tests/filters/test_preallocate.py",)

MUTATIONS = (
    Mutation(
        "copied-after-the-write",
        _CBW,
        """
      async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
    -     await self._before_write(offset, iov.nbytes, flags)
          await self._file.pwritev(offset, iov, flags)
    +     await self._before_write(offset, iov.nbytes, flags)
        """,
        "A backup has data that was written after it had begun.",
        _CBW_TESTS,
    ),
    Mutation(
        "not-copied-before-zeroes",
        _CBW,
        """
        - await self._before_write(offset, length, flags)
          await self._file.pwrite_zeroes(offset, length, flags)
        """,
        "A backup has zeroes that were written after it had begun.",
        _CBW_TESTS,
    ),
    Mutation(
        "not-copied-before-a-discard",
        _CBW,
        """
        - await self._before_write(offset, length, WriteFlags.NONE)
          await self._file.pdiscard(offset, length)
        """,
        "A backup lacks data that was discarded after it had begun.",
        _CBW_TESTS,
    ),
    Mutation(
        "last-cluster-not-copied",
        _CBW,
        """
          cluster = self._copy.cluster_size
        - first, last = offset // cluster, -(-(offset + length) // cluster)
        + first, last = offset // cluster, max((offset + length) // cluster, offset // cluster + 1)
          try:
        """,
        "Old data of the last cluster of a write, which ends inside it, is missing in the backup.",
        _CBW_TESTS,
    ),
    Mutation(
        "failed-copy-does-not-break-the-write",
        _CBW,
        """
          if self.options.on_cbw_error is OnCbwError.BREAK_GUEST_WRITE:
        -     raise
        +     return
          self._broken = True
        """,
        "A backup lacks data that could not be copied, without an error.",
        _CBW_TESTS,
    ),
    Mutation(
        "failed-copy-does-not-break-the-snapshot",
        _CBW,
        """
                  raise
        -     self._broken = True
          else:
              self._done[first:last] = True
        """,
        "A backup lacks data that could not be copied, without an error.",
        _CBW_TESTS,
    ),
    Mutation(
        "copied-and-read-from-the-source",
        _CBW,
        """
          else:
        -     self._done[first:last] = True
        +     self._done[first : last - 1] = True
        """,
        "A backup reads overwritten data.",
        _CBW_TESTS,
    ),
    Mutation(
        "write-under-a-reader",
        _CBW,
        """
        - await self._wait_for_readers(first * cluster, last * cluster)
        """,
        "A backup reads data that a write is just changing.",
        _CBW_TESTS,
    ),
    Mutation(
        "reader-lets-go-too-early",
        _CBW,
        """
          while True:
              read = next((r for r in self._frozen if r.start < stop and start < r.stop), None)
              if read is None:
                  return
              ended: Completion[None] = Completion()
              read.waiters.append(ended)
              await ended
        +     return
        """,
        "A backup reads data that a write is just changing, if two readers read the same.",
        _CBW_TESTS,
    ),
    Mutation(
        "copy-that-took-too-long-counts",
        _CBW,
        """
          cancelled.append(True)
          task.add_done_callback(log_failure)
        - raise os_error(errno.ETIMEDOUT)
        """,
        "A write starts while its old data is still being copied.",
        _CBW_TESTS,
    ),
    Mutation(
        "engine-writes-past-the-copy",
        _CBW,
        """
          def extent_map(self) -> ExtentMap | None:
        -     return self.map_for_reading()
        +     return self._file.extent_map()
        """,
        "A backup has data that the engine wrote after it had begun.",
        _CBW_TESTS,
    ),
    Mutation(
        "snapshot-shown-where-it-is-not",
        _CBW,
        """
        - if self._broken or last > len(self._accessible) or not self._accessible[first:last].all():
        + if self._broken or last > len(self._accessible) or not self._accessible[first:last].any():
              raise os_error(errno.EACCES)
        """,
        "A backup contains data that doesn't belong to the snapshot.",
        _CBW_TESTS,
    ),
    Mutation(
        "failed-cluster-is-not-dirty",
        _COPY,
        """
        - if not copied:
        -     self.dirty[task.first : task.last] = True
          self._tasks.remove(task)
        """,
        "A cluster whose copy failed once is never copied.",
        _CBW_TESTS,
    ),
    Mutation(
        "rest-of-a-task-is-not-dirty",
        _COPY,
        """
          if last < task.last:
        -     self.dirty[last : task.last] = True
              task.last = last
        """,
        "Clusters that were left for later are never copied.",
        _CBW_TESTS,
    ),
    Mutation(
        "copy-under-way-counts-as-done",
        _COPY,
        """
          done: Completion[None] = Completion()
          other.waiters.append(done)
        - await done
        + return
        """,
        "A write starts while its old data is still being copied for another write.",
        _CBW_TESTS,
    ),
    Mutation(
        "task-cut-off-and-nobody-looks-again",
        _COPY,
        """
          self.dirty[last : task.last] = True
          task.last = last
        - task.wake()
        """,
        "A write that waits for clusters that were left for later waits for earlier ones, too.",
        _CBW_TESTS,
        equivalent="It only waits longer: it looks again when the shortened task has ended.",
    ),
    Mutation(
        "data-copied-as-zeroes",
        _COPY,
        """
          zeroes = bool(extent.status & BlockStatus.ZERO)
        - last = task.first + extent.length // self.cluster_size
        + last = task.first + -(-extent.length // self.cluster_size)
        """,
        "A cluster that begins with zeroes is copied as zeroes.",
        _CBW_TESTS,
    ),
    Mutation(
        "copy-on-read-beside-writes",
        _COR,
        """
        - tracked = await tracker.enter(low, high, serialising=True)
        + tracked = await tracker.enter(low, high, serialising=False)
        """,
        "A copy of old data is written over a guest's write.",
        _COR_TESTS,
    ),
    Mutation(
        "copy-on-read-of-part-of-the-clusters",
        _COR,
        """
          low = offset // cluster * cluster
        - high = -(-(offset + iov.nbytes) // cluster) * cluster
        + high = max((offset + iov.nbytes) // cluster * cluster, low)
          tracked = await tracker.enter(low, high, serialising=True)
        """,
        "A copy of old data is written over a guest's write to the last cluster.",
        _COR_TESTS,
    ),
    Mutation(
        "copy-on-read-untracked",
        _COR,
        """
          below.write_tracker = WriteTracker()
        - for edge in below.parents:
        -     edge.refresh()
        """,
        "A copy of old data is written over a guest's write.",
        _COR_TESTS,
    ),
    Mutation(
        "copy-on-read-chain-may-change",
        _COR,
        """
          for edge in chain:
        -     edge.frozen = True
        +     edge.frozen = edge is chain[0]
          self._bottom, self._frozen = bottom, chain
        """,
        "The chain is cut below a filter that copies from it.",
        _COR_TESTS,
    ),
    Mutation(
        "copy-on-read-of-the-readers-memory",
        _COR,
        """
        - await image.preadv(start, data)
          await _write_unchanged(image, start, data)
        + await image.preadv(start, data)
        """,
        "A cluster is filled with zeroes instead of the data below.",
        _COR_TESTS,
    ),
    Mutation(
        "quorum-of-any-write",
        _QUORUM,
        """
          errors = await outcomes([member.pwritev(offset, iov, flags) for member in self._members])
        - self._check_errors(QuorumOpType.WRITE, offset, iov.nbytes, errors)
        + if None not in errors:
        +     self._check_errors(QuorumOpType.WRITE, offset, iov.nbytes, errors)
        """,
        "A write that succeeded on too few children is acknowledged.",
        _QUORUM_TESTS,
    ),
    Mutation(
        "quorum-flushes-one-child",
        _QUORUM,
        """
          await member.flush()
          errors.append(None)
        + if errors.count(None) >= self._threshold:
        +     return
        """,
        "A flush leaves the last children's data in their caches.",
        _QUORUM_TESTS,
    ),
    Mutation(
        "quorum-flush-error-ignored",
        _QUORUM,
        """
          self._report_bad(QuorumOpType.FLUSH, member, 0, 0, error)
        - errors.append(error)
        + errors.append(None)
        """,
        "A flush that failed on all children is acknowledged.",
        _QUORUM_TESTS,
    ),
    Mutation(
        "quorum-of-no-votes",
        _QUORUM,
        """
        - if versions.votes(winner) < self._threshold:
        + if versions.votes(winner) < 1:
              self._report_failure(offset, iov.nbytes)
        """,
        "A read gives data that too few children agree on.",
        _QUORUM_TESTS,
    ),
    Mutation(
        "quorum-child-written-alone",
        _QUORUM,
        """
        - return perm, shared & (Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED)
        + return perm, shared
        """,
        "Another user writes one child, whose data is then outvoted.",
        _QUORUM_TESTS,
    ),
    Mutation(
        "preallocate-cuts-data-off",
        _PREALLOCATE,
        """
              return False
        - self._data_end = end
        + self._data_end = max(self._data_end, offset)
          if end <= self._known_file_end():
        """,
        "Closing truncates the last write.",
        _PREALLOCATE_TESTS,
    ),
    Mutation(
        "preallocate-zeroes-over-data",
        _PREALLOCATE,
        """
        - if not zeroes:
        -     self._zero_start = max(self._zero_start, end)
          if end <= self._data_end:
        """,
        "Zeroes over data in the preallocated range are skipped.",
        _PREALLOCATE_TESTS,
    ),
    Mutation(
        "preallocate-beside-writes",
        _PREALLOCATE,
        """
        - tracked = await self._tracker.enter(self._known_file_end(), _END, serialising=True)
        + tracked = await self._tracker.enter(self._known_file_end(), _END, serialising=False)
        """,
        "Zeroes that make the file longer are written over another write there.",
        _PREALLOCATE_TESTS,
    ),
    Mutation(
        "throttled-write-without-its-flags",
        "vhostblk/block/drivers/throttle.py",
        """
        - await self._file.pwritev(offset, iov, flags)
        + await self._file.pwritev(offset, iov)
        """,
        "With the write cache off, an acknowledged write below a filter is in a cache only.",
        ("tests/filters/test_flags.py",),
    ),
    Mutation(
        "throttled-zeroes-without-their-flags",
        "vhostblk/block/drivers/throttle.py",
        """
        - await self._file.pwrite_zeroes(offset, length, flags)
        + await self._file.pwrite_zeroes(offset, length)
        """,
        "With the write cache off, acknowledged zeroes below a filter are in a cache only.",
        ("tests/filters/test_flags.py",),
    ),
    Mutation(
        "filter-without-a-flush",
        "vhostblk/block/graph/filter.py",
        """
          async def flush(self) -> None:
        -     await self._file.flush()
        +     self._file.node.debug_event("flush_to_os")
        """,
        "A flush above a filter does nothing.",
        ("tests/filters/test_flags.py",),
    ),
    Mutation(
        "filter-writes-without-flags",
        "vhostblk/block/graph/filter.py",
        """
        - await self._file.pwritev(offset, iov, flags)
        + await self._file.pwritev(offset, iov)
        """,
        "With the write cache off, an acknowledged write below a filter is in a cache only.",
        ("tests/filters/test_flags.py",),
    ),
    Mutation(
        "throttle-waits-in-a-drained-section",
        "vhostblk/block/drivers/throttle.py",
        """
          def drained_begin(self) -> None:
        -     self._member.lift_limits()
        +     pass
        ...
          def drained_end(self) -> None:
        -     self._member.restore_limits()
        +     pass
        """,
        "A drained section waits as long as the limits say, and so do commands and a shut-down.",
        ("tests/block/test_throttle.py::test_a_drained_section_waits_for_nobody",),
    ),
)
