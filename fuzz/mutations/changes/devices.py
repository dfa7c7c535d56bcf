# SPDX-License-Identifier: Apache-2.0
"""The device: running requests, the two lanes' queues, exports, sessions and hand-over."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_RUNNER = "vhostblk/virtio_blk/runner.py"
_QUEUE = "vhostblk/virtio_blk/queue.py"
_EXPRESS = "vhostblk/virtio_blk/express.py"
_DEVICE = "vhostblk/virtio_blk/device.py"
_QUEUE_SET = "vhostblk/virtio_blk/queue_set.py"
_MAKER = "vhostblk/virtio_blk/queue_maker.py"
_WRITE_CACHE = "vhostblk/virtio_blk/write_cache.py"
_JOURNAL = "vhostblk/vhost_user/journal.py"
_GIVER = "vhostblk/handover/giver.py"
_TAKER = "vhostblk/handover/taker.py"

_DEVICES = ("tests/virtio_blk",)
_EXPORTS = ("tests/exports", "tests/virtio_blk/test_queue.py")
_HANDOVER = ("tests/frontend/test_handover.py", "tests/handover")

MUTATIONS = (
    Mutation(
        "read-only-disk-is-written",
        _RUNNER,
        """
        - elif writable:
        + elif writable or length:
              coroutine = pwritev(sector * SECTOR_SIZE, iov)
        """,
        "A guest changes a disk that it was given read-only.",
        ("tests/virtio_blk/test_queue.py",),
    ),
    Mutation(
        "read-only-disk-is-written-in-bursts",
        _RUNNER,
        """
        - not self._device.writable
        - or (records["type"] != _OUT).any()
        + (records["type"] != _OUT).any()
          or (records["status"] != PENDING).any()
        """,
        "A guest changes a disk that it was given read-only.",
        ("tests/virtio_blk/test_queue.py::test_a_driver_that_is_not_served_changes_nothing",),
    ),
    Mutation(
        "invalid-request-in-a-burst",
        _RUNNER,
        """
          or (records["type"] != _OUT).any()
        - or (records["status"] != PENDING).any()
        """,
        "A request that was refused is done: data behind the disk is overwritten.",
        ("tests/virtio_blk/test_queue.py",),
    ),
    Mutation(
        "failed-burst-is-acknowledged",
        _RUNNER,
        """
          failures = await together
        - if not failures:
        + if not failures or failures[0] is None:
              if self._counters is not None:
        """,
        "Of a burst whose first write succeeded, failures are acknowledged.",
        ("tests/virtio_blk/test_queue.py",),
    ),
    Mutation(
        "failed-request-is-acknowledged",
        _RUNNER,
        """
          # First of all: the guest gets its answer whatever goes wrong in the rest.
        - self._complete((head, 0, status_addr, status))
        + self._complete((head, 0, status_addr, 0))
        """,
        "A write that failed is acknowledged.",
        _DEVICES,
    ),
    Mutation(
        "ended-before-published",
        _RUNNER,
        """
        - self._publish(completed)
          self._device.backend.end(len(completed.heads))
        + self._publish(completed)
        """,
        "A drained section begins, and may unmap guest memory, before statuses are written there.",
        (*_DEVICES, "tests/exports"),
        equivalent="Tasks wait for it, and go on at the loop's next turn.",
    ),
    Mutation(
        "burst-not-counted",
        _RUNNER,
        """
        - backend.begin(len(records))
          drive(self._finish_together(together, records, began), self._finished_together)
        + backend.begin(1)
        """,
        "A drained section does not wait for bursts.",
        ("tests/virtio_blk/test_queue.py",),
    ),
    Mutation(
        "flush-is-nothing",
        _DEVICE,
        """
          case RequestType.FLUSH:
        -     await self.backend.flush()
              return 0
        """,
        "A flush is acknowledged, but nothing is on stable storage.",
        ("tests/virtio_blk/test_device.py",),
    ),
    Mutation(
        "read-only-disk-is-discarded",
        _DEVICE,
        """
        - if not self.writable:
        -     raise RefusedError(Status.IOERR)
          if iov.nbytes > max_payload():
        """,
        "A guest discards a disk that it was given read-only.",
        ("tests/virtio_blk/test_device.py",),
    ),
    Mutation(
        "refused-driver-flushes",
        _DEVICE,
        """
        - self.writable = writable and not refused
        + self.writable = writable
        """,
        "A driver that doesn't know about zones writes a zoned disk.",
        ("tests/virtio_blk/test_device.py", "tests/virtio_blk/test_queue.py"),
    ),
    Mutation(
        "queue-stops-with-requests-in-flight",
        _QUEUE,
        """
          self._cancel_sweep()
        - await self.wait_idle()
          self._runner.close()
        """,
        "The base counts requests as done that are not: the next device never does them.",
        ("tests/virtio_blk/test_queue.py",),
    ),
    Mutation(
        "queue-takes-while-held",
        _QUEUE,
        """
          self._cancel_sweep()
        - if self._stopped or self._holds or self._broken:
        + if self._stopped or self._broken:
              return
        """,
        "A kick inside a drained section begins requests.",
        ("tests/virtio_blk/test_queue.py",),
    ),
    Mutation(
        "queue-idle-before-published",
        _QUEUE,
        """
        - notify = self._ring.push(completed.heads, lengths)
        + self.in_flight -= len(completed.heads)
        + if self._idle and not self.in_flight:
        +     resolve_all(self._idle)
        + notify = self._ring.push(completed.heads, lengths)
          if notify and self._call_fd is not None:
              self._counters.notified += 1
              eventfd.signal(self._call_fd)
        - self.in_flight -= len(completed.heads)
        - if self._idle and not self.in_flight:
        -     resolve_all(self._idle)
        """,
        "A queue stops before its last completions are in the ring, in which they then never are.",
        (*_DEVICES, "tests/exports"),
        equivalent="Tasks wait for it, and go on at the loop's next turn.",
    ),
    Mutation(
        "engine-requests-not-counted",
        _EXPRESS,
        """
        - if not self._counted and self.in_flight:
        + if not self._counted and self._holds == 1 and self.in_flight:
              self._counted = True
        """,
        "A drained section that begins while the queue is held already does not wait.",
        ("tests/engine", "tests/exports"),
        equivalent="A held queue takes nothing: what is in flight was so at the first hold.",
    ),
    Mutation(
        "engine-requests-never-counted",
        _EXPRESS,
        """
          self._counted = True
        - self._device.backend.begin()
        + self._device.backend.begin(0)
        ...
          self._counted = False
        - self._device.backend.end()
        + self._device.backend.end(0)
        """,
        "A drained section does not wait for requests of the engine.",
        (
            "tests/exports/test_files.py::test_a_drained_section_begins_when_all_requests_have_ended",
        ),
    ),
    Mutation(
        "engine-settles-one-phase",
        _EXPRESS,
        """
        - while self._queue and self._lib.vb_port_unsettled(self._port):
        -     await self._settling()
          if self._queue:
              self._lib.vb_port_settle(self._port)
        """,
        "Of two settlings at a time the second one forgets what the first waits for.",
        ("tests/virtio_blk/test_settle.py",),
    ),
    Mutation(
        "engine-does-not-settle",
        _EXPRESS,
        """
          self._lib.vb_port_settle(self._port)
        - while self._queue and self._lib.vb_port_unsettled(self._port):
        -     await self._settling()
        """,
        "A discarded cluster is reused while the engine writes to it.",
        ("tests/virtio_blk/test_settle.py",),
    ),
    Mutation(
        "engine-queue-not-a-user-of-its-table",
        _EXPRESS,
        """
          if table is not None:
        -     table.add_user(self)
        +     pass
          self._table = table
        ...
          if self._table is not None:
        -     self._table.remove_user(self)
        +     pass
          if table is not None:
        """,
        "A discarded cluster is reused while the engine writes to it.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "engine-not-told-of-the-cache-mode",
        _EXPRESS,
        """
        - self._lib.vb_queue_set_write_through(self._queue, not backend.enable_write_cache)
          self._lib.vb_queue_set_device_size(self._queue, backend.size)
        """,
        "A guest turns the write cache off; its acknowledged writes are in the page cache only.",
        ("tests/exports/test_files.py",),
    ),
    Mutation(
        "engine-begins-with-the-cache-on",
        _EXPRESS,
        """
        - "write_through": not device.backend.enable_write_cache,
        + "write_through": False,
        """,
        "With `writethrough`, acknowledged writes are in the page cache only.",
        ("tests/exports/test_files.py",),
    ),
    Mutation(
        "engine-not-told-of-the-size",
        _EXPRESS,
        """
          self._lib.vb_queue_set_write_through(self._queue, not backend.enable_write_cache)
        - self._lib.vb_queue_set_device_size(self._queue, backend.size)
        """,
        "The engine still uses the former size after the disk was resized.",
        ("tests/exports/test_files.py",),
    ),
    Mutation(
        "queues-not-told-of-the-cache-mode",
        _QUEUE_SET,
        """
          self._write_cache.choose(enabled)
        - self.refresh()
        """,
        "A guest turns the write cache off; its acknowledged writes are in the page cache only.",
        ("tests/exports/test_files.py",),
    ),
    Mutation(
        "writethrough-can-be-turned-off",
        _WRITE_CACHE,
        """
        - self._backend.enable_write_cache = self._default and may
        + self._backend.enable_write_cache = may
        """,
        "A driver without FLUSH gets a write cache that nobody ever flushes.",
        ("tests/exports/test_write_cache.py",),
    ),
    Mutation(
        "cache-for-drivers-that-do-not-flush",
        _WRITE_CACHE,
        """
        - may = not self._features or bool(self._features & Feature.FLUSH.mask)
        + may = True
        """,
        "Data that a driver without FLUSH has written is in a cache only.",
        ("tests/exports/test_write_cache.py",),
    ),
    Mutation(
        "cache-mode-of-the-former-driver",
        _WRITE_CACHE,
        """
        - if not features & Feature.CONFIG_WCE.mask:
        -     self.chosen = None
          self._set()
        """,
        "A driver without CONFIG_WCE gets the cache mode that the former driver chose.",
        ("tests/exports/test_write_cache.py",),
    ),
    Mutation(
        "queues-go-on-before-their-map",
        _QUEUE_SET,
        """
        - queue.set_extents(extents)
          queue.release()
        + queue.set_extents(extents)
        """,
        "After a drained section, the engine first uses the map of the former graph.",
        ("tests/exports/test_files.py",),
    ),
    Mutation(
        "queues-keep-their-map",
        _QUEUE_SET,
        """
          extents = self._maker.extents()
          for queue in self.running.values():
        -     queue.set_extents(extents)
              queue.release()
        """,
        "After a drained section, the engine still uses the map of the former graph.",
        ("tests/exports/test_files.py",),
    ),
    Mutation(
        "engine-writes-beside-read-modify-write",
        _MAKER,
        """
        - if extents is not None and extents.alignment > self._disk.logical_block_size:
        -     return replace(extents, writable=False)
          return extents
        """,
        "A read-modify-write of the block layer undoes a write of the engine.",
        ("tests/exports/test_large_blocks.py",),
    ),
    Mutation(
        "new-queue-in-a-drained-section",
        _QUEUE_SET,
        """
        - if self._drained:
        -     queue.hold()
          self._running[index] = _Running(queue, config, wires)
        """,
        "A queue that is started inside a drained section begins requests there.",
        ("tests/exports/test_queues.py",),
    ),
    Mutation(
        "memory-changes-under-requests",
        _QUEUE_SET,
        """
          with self._backend.hurried():
              for queue in queues:
        -         await queue.wait_idle()
        +         pass
          yield queues
        """,
        "Data of requests in flight is written to unmapped guest memory.",
        ("tests/exports/test_memory_changes.py",),
    ),
    Mutation(
        "memory-changed-in-part",
        _QUEUE_SET,
        """
          except VhostblkError:
        -     for queue in queues:
        -         queue.move(self.memory)
              raise
        """,
        "After a memory table was refused, some queues use it and some don't.",
        ("tests/exports/test_memory_changes.py",),
    ),
    Mutation(
        "image-taken-by-nobody",
        "vhostblk/virtio_blk/ownership.py",
        """
          with errors_as(SetupError, of=BlockError):
        -     await self._backend.set_active(active=True)
        +     pass
        """,
        "Two daemons write one image in a migration.",
        ("tests/exports/test_ownership.py",),
    ),
    Mutation(
        "image-taken-from-running-queues",
        "vhostblk/virtio_blk/ownership.py",
        """
        - self._backend.allow_inactive = False
        """,
        "An image is inactivated while its guest runs.",
        ("tests/exports/test_ownership.py",),
    ),
    Mutation(
        "image-left-while-queues-run",
        _QUEUE_SET,
        """
        - if not self._running:
        + if index not in self._running:
              await self._ownership.leave()
        """,
        "The image is inactivated as soon as the first queue stops.",
        ("tests/exports/test_ownership.py",),
    ),
    Mutation(
        "logging-for-running-queues-only",
        _QUEUE_SET,
        """
        - queue.set_log(wires.log)
        """,
        "Writes of a queue that is started during a migration are missing at the destination.",
        ("tests/exports/test_dirty_logging.py",),
    ),
    Mutation(
        "logging-changes-under-requests",
        "vhostblk/exports/vhost_user_blk/dirty_logging.py",
        """
          self._check(self._log, self._queues.memory, enabled=enabled)
          async with self._queues.quiet():
              self._enabled = enabled
        -     self._tell()
        +     self._queues.set_log(0, self._queue_log(0))
        """,
        "Writes of one of several queues are missing at the destination of a migration.",
        ("tests/exports/test_dirty_logging.py",),
    ),
    Mutation(
        "logging-stops-with-the-vring-log",
        "vhostblk/exports/vhost_user_blk/dirty_logging.py",
        """
        - if self._log is None or not (self._enabled or used_addr is not None):
        + if self._log is None or used_addr is None:
              return None
        """,
        "Writes of requests are missing at the destination of a migration.",
        ("tests/exports/test_dirty_logging.py",),
    ),
)
