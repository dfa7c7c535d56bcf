# SPDX-License-Identifier: Apache-2.0
"""One queue of a virtio block device on the express lane: run by the engine, on an iothread.

The engine takes requests, goes by the extent map and completes. What the map does not cover comes
up here and is run like any request of the Python lane. `vhostblk.virtio_blk.contract` has the
states of a queue.

The block backend counts only what Python runs. While the queue is held with requests in flight in
the engine, one more is counted for all of them, so that draining the backend waits for them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vhostblk.block.io.completion import Completion, resolve_all
from vhostblk.block.io.iovec import address_of
from vhostblk.engine.layouts import REQUEST, STATS
from vhostblk.engine.maps import encode_map
from vhostblk.errors import reason
from vhostblk.virtio_blk.base import BaseQueue
from vhostblk.virtio_blk.layout import RequestType
from vhostblk.virtio_blk.request import BlockRequests
from vhostblk.virtio_blk.runner import Completed, RequestRunner
from vhostblk.virtqueue.errors import SetupError
from vhostblk.virtqueue.inflight_packed import PackedInflight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhostblk.engine.extents import ExtentMap, ExtentTable
    from vhostblk.engine.iothread import Iothread
    from vhostblk.ratelimit import RateLimitedLogger
    from vhostblk.virtio_blk.device import BlkDevice
    from vhostblk.virtqueue.memory import GuestMemory
    from vhostblk.virtqueue.queue_log import QueueLog
    from vhostblk.virtqueue.ring import Ring


class ExpressQueue(BaseQueue):
    """A queue on an iothread. `kick_fd` belongs to it until it stops.

    `ring` says where the ring is; from the start on the engine runs it.
    """

    def __init__(
        self,
        index: int,
        ring: Ring,
        device: BlkDevice,
        kick_fd: int | None,
        log: RateLimitedLogger,
        iothread: Iothread,
    ) -> None:
        super().__init__(index, ring, device, kick_fd, log)
        self._err_told = False
        self._iothread = iothread
        self._ffi, self._lib = iothread.ffi, iothread.lib
        self._runner = RequestRunner(
            device, log, self._publish, publish_in_full=self._publish_in_full
        )
        self._memory = ring.memory
        #: The map in use, after former ones that the engine may still look at.
        self._maps: list[Any] = []
        #: Kept, for the engine uses its memory.
        self._log_used: QueueLog | None = None
        self._holds = 1
        self._counted = False
        self._left_only = False
        self._settled: list[Completion[None]] = []
        self._table: ExtentTable | None = None
        regions, count = self._regions(ring.memory)
        self._queue = self._lib.vb_queue_new(iothread.handle, self._config(), regions, count)
        if not self._queue:
            raise SetupError("no memory for a queue")
        self._port = self._lib.vb_queue_port(self._queue)
        iothread.add(self._port, self)
        self._track()
        self._lib.vb_port_open(self._port)

    def _track(self) -> None:
        """Note requests in flight where the ring does; that keeps the record mapped."""
        inflight, left = self._ring.inflight, self._ring.left
        if inflight is None:
            return
        record = (self._queue, inflight.address, inflight.counter)
        if isinstance(inflight, PackedInflight):
            failed = self._track_packed(record, inflight)
        else:
            heads = self._ffi.from_buffer("uint16_t *", left)
            failed = self._lib.vb_queue_track(*record, len(left), heads)
        if failed:
            self._close()
            raise SetupError("no memory for a queue")

    def _track_packed(self, record: tuple[Any, int, int], inflight: PackedInflight) -> int:
        ffi, ids = self._ffi, inflight.left
        # What is not an entry ends the list; the engine, which counts, never follows it.
        links = np.minimum(inflight.links, 0xFFFF).astype(np.uint16)
        columns = (ids, inflight.first[ids], inflight.last[ids], inflight.left_counts)
        chains = zip(*(column.tolist() for column in columns), strict=True)
        left = ffi.new("struct vb_packed_left[]", list(chains))
        descs = ffi.from_buffer("struct vb_packed_desc *", inflight.left_descriptors)
        numbers = ffi.from_buffer("uint16_t *", links)
        failed: int = self._lib.vb_queue_track_packed(
            *record, len(links), numbers, inflight.free_head, len(ids), left, descs
        )
        return failed

    def _config(self) -> Any:
        device = self._device
        return self._ffi.new(
            "struct vb_queue_config *",
            {
                "ring": self._ring.addresses(),
                "device_size": device.backend.size,
                "logical_block_size": device.logical_block_size,
                "index": self.index,
                "kick_fd": -1 if self._kick_fd is None else self._kick_fd,
                "writable": device.writable,
                "write_through": not device.backend.enable_write_cache,
                "serial": device.serial.ljust(20, b"\0"),
            },
        )

    def _regions(self, memory: GuestMemory) -> tuple[Any, int]:
        regions = [(r.guest_addr, r.size, r.mapping.address) for r in memory.regions]
        return self._ffi.new("struct vb_region[]", regions), len(regions)

    # The life of the queue.

    def start(self) -> None:
        """Let the engine begin; `set_extents` tells it what it may do by itself."""
        self.release()

    async def stop(self) -> int:
        """Take no more requests, finish those in flight; return the base to go on from."""
        self.hold()
        await self.wait_idle()
        self._report_errors()  # no more news will tell
        self._uncount()
        self._runner.close()
        self._go_by(None)
        base: int = self._lib.vb_queue_base(self._queue)
        self._close()
        self._close_kick()
        return base

    def _close(self) -> None:
        self._iothread.remove(self._port)
        self._lib.vb_port_close(self._port)
        self._queue = self._port = self._ffi.NULL

    def hold(self) -> None:
        """Take no more requests until `release`; holds add up."""
        self._holds += 1
        if not self._queue:  # stopped meanwhile
            return
        self._lib.vb_port_hold(self._port)
        if not self._counted and self.in_flight:
            self._counted = True
            self._device.backend.begin()

    def release(self) -> None:
        """Undo one `hold`."""
        self._holds -= 1
        if not self._holds:
            self._uncount()
        if self._queue:
            self._lib.vb_port_release(self._port)

    def _uncount(self) -> None:
        if self._counted:
            self._counted = False
            self._device.backend.end()

    @property
    def in_flight(self) -> int:
        """Requests taken and not completed, in the engine or up here.

        Calls that the engine has not carried out yet, which may be a hold, count as well.
        """
        if not self._queue:
            return 0
        count: int = self._lib.vb_port_in_flight(self._port)
        return count

    def limit_to_left(self) -> int:
        """Take only requests that an earlier process left in flight, from now on.

        Return how many of them have not been taken yet.
        """
        if not self._left_only:
            self._left_only = True
            self._lib.vb_queue_limit_to_left(self._queue)
        left: int = self._lib.vb_queue_left_count(self._queue)
        return left

    def move(self, memory: GuestMemory) -> None:
        """Go on in a new memory table; held and idle."""
        super().move(memory)
        regions, count = self._regions(memory)
        ring = self._ffi.new("struct vb_ring *", self._ring.addresses())
        if self._lib.vb_queue_move(self._queue, ring, regions, count):
            raise SetupError("no memory for a memory table")
        self._memory = memory

    def set_log(self, log: QueueLog | None) -> None:
        """Note what is written to guest memory, or not; held and idle, or just made."""
        encoded = self._ffi.NULL if log is None else log.encoded
        if self._lib.vb_queue_set_log(self._queue, encoded):
            raise SetupError("no memory for a dirty log")
        self._log_used = log

    def set_extents(self, extents: ExtentMap | None) -> None:
        """Go by another map (None: all requests come up); held and idle, or just made."""
        encoded = self._ffi.NULL
        if extents is not None:
            encoded = encode_map(self._ffi, self._lib, extents)
        self._lib.vb_port_set_map(self._port, encoded)
        if not self._lib.vb_port_pending(self._port):
            self._maps.clear()
        self._maps.append(encoded)
        self._go_by(None if extents is None else extents.table)

    def _go_by(self, table: ExtentTable | None) -> None:
        """Be among those who go by a table."""
        if self._table is not None:
            self._table.remove_user(self)
        if table is not None:
            table.add_user(self)
        self._table = table
        resolve_all(self._settled)  # the queue is idle: it uses no table

    async def settle(self) -> None:
        """Wait until what went by the table before now has ended; see `ExtentTable`."""
        while self._queue and self._lib.vb_port_unsettled(self._port):
            await self._settling()
        if self._queue:
            self._lib.vb_port_settle(self._port)
            while self._queue and self._lib.vb_port_unsettled(self._port):
                await self._settling()

    def _settling(self) -> Completion[None]:
        settled: Completion[None] = Completion()
        self._settled.append(settled)
        return settled

    def statistics(self) -> NDArray[np.void]:
        """Return what was counted since the start, a `STATS` array of shape (1,)."""
        buffer = self._ffi.buffer(self._lib.vb_port_stats(self._port), STATS.itemsize)
        return np.frombuffer(buffer, STATS).copy()

    @property
    def broken(self) -> bool:
        """Tell whether the ring made no sense."""
        return bool(self._queue and self._lib.vb_port_broken(self._port))

    def refresh(self) -> None:
        """Take over the device's size and cache mode, which have changed."""
        backend = self._device.backend
        self._lib.vb_queue_set_write_through(self._queue, not backend.enable_write_cache)
        self._lib.vb_queue_set_device_size(self._queue, backend.size)

    def set_call(self, fd: int | None) -> None:
        """Set the descriptor that notifies the guest; the caller closes the former one."""
        self._check(self._lib.vb_queue_set_call(self._queue, -1 if fd is None else fd))

    def set_err(self, fd: int | None) -> None:
        """Set the descriptor that tells the front-end of a broken ring."""
        self._check(self._lib.vb_queue_set_err(self._queue, -1 if fd is None else fd))

    def _check(self, result: int) -> None:
        if result < 0:
            raise SetupError(f"queue {self.index}: {reason(-result)}")

    # News from the engine.

    def engine_news(self) -> None:
        """Look whether requests failed, the queue has become idle, or broke."""
        self._report_errors()
        reason = self._lib.vb_port_broken(self._port)
        if reason and not self._err_told:
            self._err_told = True
            self._warn_broken(self._ffi.string(reason).decode())
        if self._settled and not self._lib.vb_port_unsettled(self._port):
            resolve_all(self._settled)
        if (self._idle or self._counted) and not self.in_flight:
            self._uncount()
            resolve_all(self._idle)
        if self._left and not self.limit_to_left():
            resolve_all(self._left)

    def _report_errors(self) -> None:
        for kind in (RequestType.IN, RequestType.OUT):
            code = self._lib.vb_port_take_error(self._port, kind == RequestType.OUT)
            if code:
                self._log.warning("request failed: %s", reason(code))
                self._device.report_error(kind, code)

    def upcalls(self, records: NDArray[np.void], iovs: NDArray[np.void]) -> None:
        """Run requests that the map does not cover."""
        requests = np.empty(len(records), REQUEST)
        self._lib.vb_queue_describe(
            self._queue,
            len(records),
            self._ffi.from_buffer("struct vb_upcall *", records),
            self._ffi.from_buffer("struct vb_request *", requests),
        )
        self._runner.start(BlockRequests(requests, iovs, address_of(iovs), self._memory))

    def _publish(self, completed: Completed) -> None:
        ffi = self._ffi
        heads = np.ascontiguousarray(completed.heads)
        written = np.minimum(completed.written, 0xFFFF_FFFE).astype(np.uint32)
        self._lib.vb_port_complete(
            self._port,
            len(heads),
            ffi.from_buffer("uint16_t *", heads),
            ffi.from_buffer("uint8_t *", completed.statuses),
            ffi.from_buffer("uint32_t *", written),
        )

    def _publish_in_full(self, records: NDArray[np.void]) -> None:
        heads = np.ascontiguousarray(records["head"])
        null = self._ffi.NULL
        self._lib.vb_port_complete(
            self._port, len(heads), self._ffi.from_buffer("uint16_t *", heads), null, null
        )
