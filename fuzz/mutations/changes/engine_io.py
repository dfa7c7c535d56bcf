# SPDX-License-Identifier: Apache-2.0
"""The engine: executing requests, and file I/O."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_EXECUTE = "vhostblk/engine/src/core/execute.c"
_QUEUE = "vhostblk/engine/src/virtqueue/queue.c"
_SLOT = "vhostblk/engine/src/virtqueue/slot.c"
_PORT = "vhostblk/engine/src/core/port.c"
_RUN = "vhostblk/engine/src/core/run.c"
_PIECES = "vhostblk/engine/src/core/pieces.c"
_URING = "vhostblk/engine/src/core/io_uring.c"
_POOL = "vhostblk/engine/src/core/io_pool.c"
_EXTENT = "vhostblk/engine/src/core/extent.c"

_FILE_IO = ("tests/engine/test_file_io.py",)
_IN_PIECES = ("tests/engine/test_pieces.py",)
_ENGINE = ("tests/engine",)
_THROUGH = ("tests/engine/test_write_through.py",)

MUTATIONS = (
    Mutation(
        "kept-file-of-another-map",
        _EXECUTE,
        """
        - if (port->file_stale || task->map != port->map)
        + if (task->map != port->map)
              return VB_FILE_NONE;
        """,
        "Until the former map's file is dropped, requests of the new map go to that file.",
        ("tests/engine/test_kept_files.py",),
    ),
    Mutation(
        "kept-file-not-stale",
        _PORT,
        """
          if (port->file >= 0)
        -     port->file_stale = true;
        +     port->file_stale = !map;
        """,
        "Requests go to the file of the former map.",
        ("tests/engine/test_kept_files.py",),
    ),
    Mutation(
        "kept-file-place-used-twice",
        _URING,
        """
        - uring->free_files &= ~(1ull << file);
          return file;
        """,
        "Two queues register their files in one place: writes of one go to the other's file.",
        ("tests/engine/test_kept_files.py",),
    ),
    Mutation(
        "kept-file-never-dropped",
        _URING,
        """
        + return false;
          if (io_uring_register_files_update(&uring->ring, file, &none, 1) != 1)
        """,
        "The file of a closed image stays open and locked: another process can't open it.",
        ("tests/engine/test_kept_files.py",),
    ),
    Mutation(
        "kept-file-idle-too-early",
        _PORT,
        """
        - uint32_t busy = port->in_flight + (port->holds && has_file(port));
        + uint32_t busy = port->in_flight;
        """,
        "A drained section ends while the file is still open: its locks outlive the node.",
        ("tests/engine/test_kept_files.py",),
    ),
    Mutation(
        "rest-of-transfer-at-old-offset",
        _EXECUTE,
        """
          task->transferred += bytes;
        - op->offset += bytes;
        """,
        "The rest of a short write is written at its beginning.",
        _FILE_IO,
    ),
    Mutation(
        "rest-of-segment-from-its-start",
        _EXECUTE,
        """
        - iov->iov_base = (char *)iov->iov_base + bytes;
          iov->iov_len -= bytes;
        """,
        "The rest of a short write is the segment's first bytes once more.",
        _FILE_IO,
    ),
    Mutation(
        "attempt-beside-write-through",
        _RUN,
        """
          return !vb_task_writes(task) ||
        -        (!(task->flags & VB_TASK_FUA) && port->iothread->now >= port->slow_until);
        +        port->iothread->now >= port->slow_until;
        """,
        "With the write cache off, an acknowledged write is in the page cache only.",
        _THROUGH,
    ),
    Mutation(
        "write-through-flag-lost",
        _EXECUTE,
        """
        - task->flags & VB_TASK_FUA && !task->sync_error ? RWF_DSYNC : 0);
        + 0);
        """,
        "With the write cache off, an acknowledged write is in the page cache only.",
        _THROUGH,
    ),
    Mutation(
        "write-through-flag-lost-on-the-rest",
        _EXECUTE,
        """
          vb_task_skip(task, whole); /* a part of a block is written again */
        - queue_op(task, op->opcode, op->flags);
        + queue_op(task, op->opcode, 0);
        """,
        "The rest of a short write under write-through is in the page cache only.",
        _THROUGH,
    ),
    Mutation(
        "write-through-flag-lost-on-retry",
        _EXECUTE,
        """
          if (result == -EAGAIN || result == -EINTR) {
        -     queue_op(task, op->opcode, op->flags);
        +     queue_op(task, op->opcode, 0);
        """,
        "A write under write-through that is tried again is in the page cache only.",
        _THROUGH,
        equivalent="No test can have the kernel answer a write with EAGAIN or EINTR.",
    ),
    Mutation(
        "write-through-flag-lost-in-io-uring",
        _URING,
        """
              io_uring_prep_writev(sqe, op->fd, op->iovs, count, op->offset);
        - sqe->rw_flags = op->flags;
        """,
        "With the write cache off, an acknowledged write is in the page cache only.",
        _THROUGH,
    ),
    Mutation(
        "write-through-flag-lost-in-the-pool",
        _POOL,
        """
        - result = pwritev2(op->fd, op->iovs, count, op->offset, op->flags);
        + result = pwritev2(op->fd, op->iovs, count, op->offset, 0);
        """,
        "With the write cache off, an acknowledged write is in the page cache only.",
        _THROUGH,
    ),
    Mutation(
        "write-cache-switch-ignored",
        _QUEUE,
        """
          {
        -     vb_queue_of(command->port)->write_through = command->number;
        """,
        "A guest turns the write cache off; its acknowledged writes are in the page cache only.",
        _THROUGH,
    ),
    Mutation(
        "short-attempt-is-whole",
        _RUN,
        """
        - if (result >= 0 && task->transferred + (uint64_t)result == task->end) {
        + if (result > 0) {
              if (task->end == task->length)
        """,
        "A write that stopped halfway is acknowledged.",
        _FILE_IO,
    ),
    Mutation(
        "short-run-is-whole",
        _RUN,
        """
        - together = result >= 0 && (uint64_t)result == run->bytes;
        + together = result > 0;
        """,
        "Writes of a run that stopped halfway are acknowledged.",
        ("tests/engine/test_runs.py",),
    ),
    Mutation(
        "run-with-a-gap",
        _RUN,
        """
        - run->end != task->op.offset || run->bytes + task->length > VB_MAX_INLINE_BYTES ||
        + run->end > task->op.offset || run->bytes + task->length > VB_MAX_INLINE_BYTES ||
        """,
        "A write behind a gap is done in the gap.",
        ("tests/engine/test_runs.py",),
    ),
    Mutation(
        "run-of-reads-and-writes",
        _RUN,
        """
        - if (!run->count || last->kind != task->kind || last->map != task->map ||
        + if (!run->count || last->map != task->map ||
        """,
        "A write that follows a read in the file is done as a read.",
        ("tests/engine/test_runs.py",),
    ),
    Mutation(
        "run-left-undone-for-the-last-request",
        _RUN,
        """
        - run->bytes += task->length;
          port->turn.bytes -= (int64_t)task->length;
        """,
        "A run's length is too small, so that a short one counts as whole.",
        ("tests/engine/test_runs.py",),
    ),
    Mutation(
        "read-only-device-is-written",
        _SLOT,
        """
        - if (queue->config.writable)
        + if (queue->config.writable || queue->port.size)
              start(slot, VB_TASK_WRITE, queue->write_through ? VB_TASK_FUA : 0);
        """,
        "A guest changes a disk that it was given read-only.",
        _FILE_IO,
    ),
    Mutation(
        "read-only-device-is-discarded",
        _SLOT,
        """
        - if (!queue->config.writable || request->length > sizeof(segments)) {
        + if (request->length > sizeof(segments)) {
        """,
        "A guest discards a disk that it was given read-only.",
        _FILE_IO,
    ),
    Mutation(
        "flush-of-a-format-is-nothing",
        _EXECUTE,
        """
        - if (map && map->flags & VB_EXTENT_NO_FLUSH) {
        + if (map && !(map->flags & VB_EXTENT_FLUSH)) {
              finish(task, 0);
        """,
        "A flush of a qcow2 disk is acknowledged, and its tables are in memory only.",
        ("tests/engine/test_upcalls.py", "tests/engine/test_file_io.py"),
    ),
    Mutation(
        "flush-of-a-format-is-its-files",
        _EXECUTE,
        """
        - } else if (map && map->flags & VB_EXTENT_FLUSH && begin_sync(task)) {
        + } else if (map && begin_sync(task)) {
              begin_mapped(task);
        """,
        "A flush of a qcow2 disk puts its file on stable storage, and not its tables.",
        ("tests/engine/test_upcalls.py", "tests/engine/test_file_io.py"),
    ),
    Mutation(
        "zeroes-without-the-offset",
        _EXECUTE,
        """
        - task->op.offset = map->offset + task->offset;
        + task->op.offset = task->offset;
        """,
        "Zeroes and discards on a raw node with an offset hit data before it in the file.",
        _FILE_IO,
    ),
    Mutation(
        "zeroes-beside-write-through",
        _EXECUTE,
        """
        - return map->flags & VB_EXTENT_ZERO_RANGE && !(task->flags & VB_TASK_FUA);
        + return map->flags & VB_EXTENT_ZERO_RANGE;
        """,
        "With the write cache off, acknowledged zeroes are not on stable storage.",
        _THROUGH,
    ),
    Mutation(
        "zeroes-past-the-map",
        _EXECUTE,
        """
        - if (!map || !(map->flags & VB_EXTENT_WRITE) || task->offset > map->size ||
        + if (!map || task->offset > map->size ||
        """,
        "Zeroes and discards are done where writes have to be asked for: on a read-only file's "
        "map, or under read-modify-write.",
        _FILE_IO,
    ),
    Mutation(
        "zeroes-smaller-than-a-block",
        _EXECUTE,
        """
        - if (map->kind != VB_EXTENT_LINEAR || map->alignment > task->port->block)
        + if (map->kind != VB_EXTENT_LINEAR)
        """,
        "Zeroes that are not whole blocks of the file are done beside a read-modify-write.",
        _FILE_IO,
    ),
    Mutation(
        "second-discard-segment-not-judged",
        "vhostblk/engine/src/virtqueue/request.c",
        """
        - for (uint64_t i = 0; i < count; i++) {
        + for (uint64_t i = 0; i < 1; i++) {
              uint64_t sector = segments[i].sector, sectors = segments[i].sectors;
        """,
        "Segments past the end of the disk are discarded or zeroed in the file.",
        ("tests/engine/test_file_io.py", "tests/engine/test_differential.py"),
    ),
    Mutation(
        "discard-one-sector-past-the-end",
        "vhostblk/engine/src/virtqueue/request.c",
        """
          if (sectors > VB_MAX_REQUEST_SECTORS || sector > size / VB_SECTOR_SIZE ||
        -     sectors > size / VB_SECTOR_SIZE - sector)
        +     sectors > size / VB_SECTOR_SIZE - sector + 1)
        """,
        "Data behind the disk in its file is discarded.",
        ("tests/engine/test_file_io.py", "tests/engine/test_differential.py"),
    ),
    Mutation(
        "write-one-sector-past-the-end",
        "vhostblk/engine/src/virtqueue/request.c",
        """
        - if (request->sector > capacity || sectors > capacity - request->sector)
        + if (request->sector > capacity || sectors > capacity - request->sector + 1)
        """,
        "Data behind the disk in its file is overwritten.",
        ("tests/engine/test_differential.py", "tests/engine/test_runs.py"),
    ),
    Mutation(
        "discard-with-unknown-flags",
        "vhostblk/engine/src/virtqueue/request.c",
        """
        - uint32_t known = type == VB_T_WRITE_ZEROES ? VB_DISCARD_UNMAP : 0;
        + uint32_t known = VB_DISCARD_UNMAP;
        """,
        "A discard that asks for more than we know is done.",
        ("tests/engine/test_file_io.py", "tests/engine/test_differential.py"),
    ),
    Mutation(
        "short-read-is-the-end",
        _EXECUTE,
        """
        - } else if (!vb_task_writes(task) && (!bytes || whole != bytes)) {
        + } else if (!vb_task_writes(task)) {
        """,
        "A read that the kernel does in two parts returns zeroes for the second one.",
        _FILE_IO,
    ),
    Mutation(
        "short-write-is-whole",
        _EXECUTE,
        """
        - if (task->transferred + (uint64_t)bytes == task->end) {
        + if (vb_task_writes(task) || task->transferred + (uint64_t)bytes == task->end) {
        """,
        "A write that stopped halfway is acknowledged.",
        _FILE_IO,
    ),
    Mutation(
        "full-file-is-no-error",
        _EXECUTE,
        """
        - vb_task_finish_mapped(task, -ENOSPC);
        + vb_task_finish_mapped(task, 0);
        """,
        "A write of which the kernel writes nothing is acknowledged.",
        _FILE_IO,
        equivalent="No file returns 0 for a write: a full one returns an error.",
    ),
    Mutation(
        "failed-flush-is-forgotten",
        _EXECUTE,
        """
          if (result < 0)
              map->sync->error = (int32_t)-result;
        - return -(int64_t)map->sync->error;
        + return result;
        """,
        "The flush after one that failed succeeds, though the kernel has dropped the data.",
        _FILE_IO,
    ),
    Mutation(
        "failed-flush-is-not-noted",
        _EXECUTE,
        """
        - if (result < 0)
        + if (result == -EIO)
              map->sync->error = (int32_t)-result;
        """,
        "A flush that fails with ENOSPC or EDQUOT is acknowledged.",
        _FILE_IO,
    ),
    Mutation(
        "flush-takes-no-turn",
        _EXECUTE,
        """
        - } else if (map && map->flags & VB_EXTENT_FLUSH && begin_sync(task)) {
        + } else if (map && map->flags & VB_EXTENT_FLUSH) {
        """,
        "A flush succeeds though its data is lost: another one got the error at the same time.",
        _FILE_IO,
    ),
    Mutation(
        "write-through-takes-no-turn",
        _EXECUTE,
        """
        - (verdict == VB_GO_FILE && access == VB_ACCESS_WRITE_THROUGH && !begin_sync(task))) {
        + false) {
        """,
        "A flush succeeds though its data is lost: a write with RWF_DSYNC got the error.",
        _FILE_IO,
    ),
    Mutation(
        "turn-is-not-given-back",
        _EXECUTE,
        """
          struct vb_port *port = task->port;

        - end_sync(task, task->map);
        """,
        "After one flush of the engine, all others wait for ever.",
        _FILE_IO,
    ),
    Mutation(
        "turn-is-kept-without-budget",
        _EXECUTE,
        """
        - end_sync(task, port->map);
          not_here(task);
        """,
        "A throttled write waits for the turn that it has itself.",
        ("tests/engine/test_file_io.py",),
    ),
    Mutation(
        "end-of-turn-is-not-told",
        "vhostblk/engine/src/core/sync.c",
        """
        - if (before & ~holder)
        + if (before & ~holder & VB_SYNC_ENGINE)
              eventfd_write(sync->event_fd, 1);
        """,
        "A flush in Python waits for ever for that of an iothread.",
        ("tests/block/file",),
    ),
    Mutation(
        "failed-segment-is-forgotten",
        _SLOT,
        """
        - if (!error && start_segment(slot))
        + if (start_segment(slot))
              return;
        """,
        "Of several segments to be zeroed, the error of all but the last one is ignored.",
        _FILE_IO,
    ),
    Mutation(
        "unknown-fallocate-is-done",
        _EXECUTE,
        """
          end_mapped(task);
        - not_here(task);
        + finish(task, 0);
        """,
        "Zeroes are acknowledged on a file system that can't make them.",
        _FILE_IO,
    ),
    Mutation(
        "error-of-fdatasync-ignored-in-the-pool",
        _POOL,
        """
        - result = fdatasync(op->fd);
        + fdatasync(op->fd);
        + result = 0;
        """,
        "Where io_uring is forbidden, a failed flush is acknowledged.",
        _FILE_IO,
    ),
    Mutation(
        "flush-left-out-in-the-pool",
        _POOL,
        """
        - result = fdatasync(op->fd);
        + result = 0;
        """,
        "Where io_uring is forbidden, a flush does nothing.",
        _THROUGH,
    ),
    Mutation(
        "flush-left-out-in-io-uring",
        _URING,
        """
        - io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        + io_uring_prep_nop(sqe);
        """,
        "A flush does nothing.",
        _THROUGH,
    ),
    Mutation(
        "backlog-ends-in-the-past",
        _URING,
        """
          uring->backlog = next;
        - if (!next)
        -     uring->backlog_end = &uring->backlog;
        """,
        "Operations that find the submission queue full a second time are never done.",
        _FILE_IO,
    ),
    Mutation(
        "write-through-a-shared-entry",
        _EXTENT,
        """
        - uint64_t wanted = access == VB_ACCESS_READ ? VB_ENTRY_READ : VB_ENTRY_OVERWRITE;
        + uint64_t wanted = VB_ENTRY_READ;
        """,
        "A cluster that a snapshot shares is overwritten in place.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "clusters-apart-are-one-piece",
        _EXTENT,
        """
        - if (!(next & wanted) || next & bars ||
        -     (next & ~ENTRY_FLAGS) != (entry & ~ENTRY_FLAGS) + cluster)
        + if (!(next & wanted) || next & bars)
              return VB_GO_UP;
        """,
        "A write to two clusters that are not adjacent overwrites data behind the first one.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "next-cluster-need-not-be-writable",
        _EXTENT,
        """
        - if (!(next & wanted) || next & bars ||
        + if (!next || next & bars ||
        """,
        "The second cluster of a write is overwritten though a snapshot shares it.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "last-cluster-not-looked-at",
        _EXTENT,
        """
        - for (uint64_t i = first + 1; i <= last; i++) {
        + for (uint64_t i = first + 1; i < last; i++) {
        """,
        "The last cluster of a write is not checked, and may not be writable.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "last-zero-cluster-not-looked-at",
        _EXTENT,
        """
          if (access == VB_ACCESS_READ && entry & VB_ENTRY_ZERO) {
        -     for (uint64_t i = first + 1; i <= last; i++)
        +     for (uint64_t i = first + 1; i < last; i++)
        """,
        "A read returns zeroes for a cluster that has data.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "write-through-a-volatile-entry",
        _EXTENT,
        """
        - uint64_t bars = access == VB_ACCESS_WRITE_THROUGH ? VB_ENTRY_VOLATILE : 0;
        + uint64_t bars = 0;
        """,
        "With the write cache off, a write is acknowledged although a crash undoes the entry.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "write-through-a-volatile-second-entry",
        _EXTENT,
        """
        - if (!(next & wanted) || next & bars ||
        + if (!(next & wanted) ||
              (next & ~ENTRY_FLAGS) != (entry & ~ENTRY_FLAGS) + cluster)
        """,
        "With the write cache off, a write to two clusters is acknowledged of which a crash takes "
        "one back.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "write-through-looks-up-like-a-write",
        _EXECUTE,
        """
        - return task->flags & VB_TASK_FUA ? VB_ACCESS_WRITE_THROUGH : VB_ACCESS_WRITE;
        + return VB_ACCESS_WRITE;
        """,
        "With the write cache off, a write is acknowledged although a crash undoes the entry.",
        ("tests/engine/test_file_io.py", "integration/qcow2/test_volatile.py"),
    ),
    Mutation(
        "failed-write-through-is-no-failed-flush",
        _EXECUTE,
        """
        - int64_t result = task->sync_error ? judge_flush(task->map, task->sync_error) : 0;
        + int64_t result = task->sync_error;
        """,
        "The flush after a write whose data could not be brought to storage succeeds.",
        ("tests/engine/test_file_io.py",),
    ),
    Mutation(
        "failed-write-through-is-acknowledged",
        _EXECUTE,
        """
        - int64_t result = task->sync_error ? judge_flush(task->map, task->sync_error) : 0;
        + int64_t result = 0;
        """,
        "A write whose data could not be brought to storage is acknowledged.",
        ("tests/engine/test_file_io.py",),
    ),
    Mutation(
        "writes-without-leave",
        _EXTENT,
        """
        - if (write && !(map->flags & VB_EXTENT_WRITE))
        + if (write && map->kind == VB_EXTENT_TABLE && !(map->flags & VB_EXTENT_WRITE))
              return VB_GO_UP;
        """,
        "Writes bypass a filter or a permission check.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "linear-without-the-offset",
        _EXTENT,
        """
        - *file_offset = map->offset + offset;
        + *file_offset = offset;
        """,
        "A raw node with an offset is read and written elsewhere in the file.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "length-past-the-map",
        _EXTENT,
        """
        - if (!map || !length || offset > map->size || length > map->size - offset)
        + if (!map || !length || offset >= map->size)
              return VB_GO_UP;
        """,
        "A request that begins on the disk and ends behind it overwrites data behind it.",
        ("tests/engine/test_extents.py",),
    ),
    Mutation(
        "next-piece-from-the-start-of-its-segment",
        _PIECES,
        """
          if (task->trim)
        -     task->iovs[first + op->count - 1].iov_len += task->trim;
          task->trim = 0;
        """,
        "Of a long write, what is behind the end of a piece is left out.",
        _IN_PIECES,
    ),
    Mutation(
        "piece-longer-than-it-is",
        _PIECES,
        """
        - task->iovs[op->iovs - task->iovs + count - 1].iov_len -= task->trim;
        + task->iovs[op->iovs - task->iovs + count - 1].iov_len -= 0;
        """,
        "A long transfer goes on elsewhere in its buffer.",
        _IN_PIECES,
    ),
    Mutation(
        "rest-of-a-long-transfer-is-forgotten",
        _PIECES,
        """
        - if (task->transferred == task->length)
        + if (task->transferred)
              vb_task_finish_mapped(task, 0);
        """,
        "A long write is acknowledged after its first piece.",
        _IN_PIECES,
    ),
    Mutation(
        "zeroes-end-with-the-piece",
        _PIECES,
        """
        - if (task->end < task->length) {
        + if (false) {
              wait_for_turn(task);
        """,
        "A long read of zeroes leaves most of its buffer as it was.",
        _IN_PIECES,
    ),
)
