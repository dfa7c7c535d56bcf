# SPDX-License-Identifier: Apache-2.0
"""The base of the drivers for regular files and block devices of the host.

The descriptor's number (`fd`) stays the same for the node's life, also when the file is reopened
for writing. Offsets in the node are offsets in the file. So the compiled engine, which does I/O on
its own, needs only these.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import errno
import logging
import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Self

from vhostblk import engine as core
from vhostblk.block.aio.engines import acquire, release
from vhostblk.block.drivers.direct import probe_alignment
from vhostblk.block.errors import BlockError
from vhostblk.block.graph import storage
from vhostblk.block.graph.filename import ProtocolDriver
from vhostblk.block.graph.locking import ImageLock, locking_wanted
from vhostblk.block.graph.node import BlockLimits
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.graph.storage import StorageNode
from vhostblk.block.io.completion import gather
from vhostblk.block.io.flags import WriteFlags
from vhostblk.block.io.rounds import Rounds
from vhostblk.engine.extents import ExtentKind, ExtentMap, Treatment
from vhostblk.engine.sync import FileSync
from vhostblk.errors import errors_as, os_error, reason
from vhostblk.schema.common import BlockdevAioOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vhostblk.block.aio.engine import AioEngine
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.locking import LockGuard
    from vhostblk.block.graph.node import Failures
    from vhostblk.block.graph.storage import StorageId
    from vhostblk.block.io.completion import Completion
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.reservations.manager import Manager

logger = logging.getLogger(__name__)

# fallocate(2) modes, from <linux/falloc.h>.
FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10
FALLOC_UNSHARE_RANGE = 0x40

#: Linux's IOV_MAX.
MAX_IOV = 1024
#: Reads up to this length are first tried from the page cache, synchronously.
INLINE_BYTES = 64 << 10
#: After a miss, this many reads go to the engine directly.
INLINE_PAUSE = 16

_WRITERS = Perm.WRITE | Perm.WRITE_UNCHANGED | Perm.RESIZE
_AGAIN = (-errno.EAGAIN, -errno.EINTR)


class PosixNode(StorageNode, ProtocolDriver):
    """A file or device with I/O at offsets."""

    reopens = True
    takes_any_prefix = True
    # Options of a check that `cache.direct` makes unnecessary. They have no effect.
    mutable_options = frozenset({"drop_cache", "x_check_cache_dropped"})

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.read_only = options.read_only
        self.direct: bool = options.cache.direct
        self.fd = -1
        #: The manager that sends persistent reservation commands to the device.
        self.pr_manager: Manager | None = None
        self._size = 0
        self._storage: frozenset[StorageId] = frozenset()
        self._aio: AioEngine
        self._lock: ImageLock | None = None
        self._fd_writable = False
        #: The reopened file while the node is being reopened, and whether it is writable.
        self._new_fd = -1
        self._new_fd_writable = False
        #: Serialises flushes, and has the errno of a failed flush, after which data may be lost.
        #: Shared with the users of the extent map.
        self._sync = FileSync()
        self._flushes = Rounds(self._flush)
        #: fallocate modes that work for this file, as far as is known.
        self._modes = {0, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, FALLOC_UNSHARE_RANGE}
        self._inline: Any = self._inline_reader()
        self._inline_pause = 0

    def _inline_reader(self) -> Any:
        compiled = core.load()
        return compiled.lib.vb_preadv if compiled and not self.direct else None

    # Opening and closing.

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        if options.aio is BlockdevAioOptions.NATIVE and not options.cache.direct:
            raise BlockError(
                "aio=native was specified, but it requires cache.direct=on, which was not "
                "specified."
            )
        node = cls(node_name, options)
        if isinstance(options.pr_manager, str):
            node.pr_manager = graph.pr_managers.find(options.pr_manager)
        locking = locking_wanted(options.locking)
        # With auto-read-only, `apply_permissions` reopens the file for the first writer.
        node._fd_writable = _opened_for_writing(options, Perm.NONE)
        node.fd = node._open_file(writable=node._fd_writable, direct=node.direct)
        try:
            node._check_type(os.fstat(node.fd))
            node._inspect()
            if locking:
                node._lock = ImageLock(node.fd, options.filename)
            node._aio = acquire(options.aio)
        except BaseException as error:
            os.close(node.fd)
            if isinstance(error, OSError):
                raise node._open_error(reason(error)) from error
            raise
        node._aio.limit_batch(options.aio_max_batch)
        node._storage = storage.identify(node.fd)
        storage.note_open(node)
        if node.pr_manager is not None:
            node.pr_manager.users.add(node_name)
        return node

    def _open_error(self, why: str) -> BlockError:
        path = self.options.filename
        return BlockError(f"Could not open '{path}': {why}", file=path)

    def _open_file(self, *, writable: bool, direct: bool) -> int:
        """Open the file; raises BlockError."""
        path = self.options.filename
        # Without O_NONBLOCK, opening a FIFO by mistake would block.
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
        except (OSError, ValueError) as error:
            why = reason(error)
            if direct and isinstance(error, OSError) and error.errno == errno.EINVAL:
                why = "filesystem does not support O_DIRECT"
            raise self._open_error(why) from error
        os.set_blocking(fd, True)
        return fd

    @abstractmethod
    def _check_type(self, status: os.stat_result) -> None:
        """Raise BlockError if the file has the wrong type for the driver."""

    @abstractmethod
    def _read_size(self) -> int:
        """Return the size from the kernel."""

    def _discard_granularity(self) -> int:
        return 0

    def _inspect(self) -> None:
        """Determine size and limits."""
        self._size = self._read_size()
        align = probe_alignment(self.fd) if self.direct else 1
        self.limits = BlockLimits(
            request_alignment=align,
            # The kernel checks the lengths of segments against the block size, too.
            memory_alignment=align,
            max_iov=MAX_IOV,
            discard_granularity=self._discard_granularity(),
        )

    async def close(self) -> None:
        await release(self._aio)
        self._sync.close()
        os.close(self.fd)
        storage.note_closed(self)
        if self.pr_manager is not None:
            self.pr_manager.users.discard(self.node_name)

    @property
    def storage(self) -> frozenset[StorageId]:
        return self._storage

    @property
    def size(self) -> int:
        return self._size

    @property
    def filename(self) -> str:
        name: str = self.options.filename
        return name

    def apply_permissions(self, perm: Perm, shared: Perm) -> None:
        if _opened_for_writing(self.options, perm):
            if self._new_fd < 0 and not self._fd_writable:
                self._reopen(writable=True)
            elif self._new_fd >= 0 and not self._new_fd_writable:
                self._open_new(self.options, writable=True)
        if self._lock is not None:
            self._lock.acquire(perm, shared)

    def permissions_applied(self) -> None:
        needed = _opened_for_writing(self.options, self.granted[0])
        if needed or not self._fd_writable or self._new_fd >= 0:
            return
        try:
            self._reopen(writable=False)
        except BlockError:
            pass  # for example, the file was renamed: the open file can still be used

    def _reopen(self, *, writable: bool) -> None:
        """Replace the open file of the descriptor; requests in flight keep the old one."""
        fd = self._open_file(writable=writable, direct=self.direct)
        try:
            self._check_same(fd)
            if self._lock is not None:
                self._lock.transfer(fd)
            os.dup2(fd, self.fd, inheritable=False)
            self._fd_writable = writable
            if self._lock is not None:
                self._lock.set_fd(self.fd)
        finally:
            os.close(fd)

    def _check_same(self, fd: int) -> None:
        """Raise BlockError if the name refers to another file by now."""
        before, after = os.fstat(self.fd), os.fstat(fd)
        if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
            raise BlockError(f"Could not open '{self.filename}': the file has been replaced")

    # Reopening with other options.

    def prepare_reopen(self, options: Any) -> None:
        writable = _opened_for_writing(options, self.granted[0])
        if writable != self._fd_writable or options.cache.direct != self.direct:
            self._open_new(options, writable=writable)

    def _open_new(self, options: Any, *, writable: bool) -> None:
        """Open the same file again, in addition to the old descriptor; raises BlockError."""
        fd = self._open_file(writable=writable, direct=options.cache.direct)
        try:
            self._check_same(fd)
        except BaseException:
            os.close(fd)
            raise
        self.abort_reopen()
        self._new_fd, self._new_fd_writable = fd, writable

    def commit_reopen(self) -> None:
        if self._new_fd < 0:
            return
        fd, self._new_fd = self._new_fd, -1
        if self._lock is not None:
            try:
                self._lock.transfer(fd)
            except BlockError as error:  # the kernel has no memory for locks
                logger.error("%s: the image lock was lost: %s", self.filename, error)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        if self._lock is not None:
            self._lock.set_fd(self.fd)
        self._fd_writable = self._new_fd_writable
        self.direct = self.options.cache.direct
        self._inline = self._inline_reader()
        self._inspect()
        self.permissions_applied()

    def abort_reopen(self) -> None:
        if self._new_fd >= 0:
            os.close(self._new_fd)
            self._new_fd = -1

    def make_guard(self) -> LockGuard | None:
        os.close(self._open_file(writable=self._fd_writable, direct=self.direct))
        return None if self._lock is None else self._lock.make_guard()

    def refresh_image(self) -> None:
        with errors_as(BlockError, "Could not refresh total sector count"):
            self._size = self._read_size()

    # For queries.

    @property
    def allocated_size(self) -> int | None:
        return os.fstat(self.fd).st_blocks * 512

    @property
    def image_details(self) -> dict[str, Any]:
        from vhostblk.schema.block_query import ImageInfoSpecific
        from vhostblk.schema.drivers.file_query import ImageInfoSpecificFile

        specific = ImageInfoSpecific(type="file", data=ImageInfoSpecificFile())
        return {"dirty_flag": False, "format_specific": specific}

    @property
    def strong_options(self) -> dict[str, Any]:
        return {"filename": self.filename}

    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        return self.filename

    @classmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        return {"filename": rest}

    # Reading.

    async def preadv(self, offset: int, iov: IoVec) -> None:
        nbytes = iov.nbytes
        if self._inline is not None and nbytes <= INLINE_BYTES:
            if self._inline_pause:
                self._inline_pause -= 1
            else:
                done = self._inline(self.fd, iov.address, iov.count, offset, os.RWF_NOWAIT)
                if done == nbytes:
                    return
                self._inline_missed(done)
        done = await self._aio.preadv(self.fd, iov, offset)
        if done != nbytes:
            await self._continue_read(offset, iov, done)

    async def pread_segments(self, offsets: list[int], iov: IoVec) -> Failures:
        compiled = core.load()
        count = len(offsets)
        if (
            compiled is None
            or self._inline is None
            or self._inline_pause
            or iov.nbytes > count * INLINE_BYTES
        ):
            return await super().pread_segments(offsets, iov)
        results = compiled.ffi.new("int64_t[]", count)
        compiled.lib.vb_pread_segments(self.fd, iov.address, count, offsets, os.RWF_NOWAIT, results)
        done: list[int] = compiled.ffi.unpack(results, count)
        lengths: list[int] = iov.segments["len"].tolist()
        if done == lengths:
            return []
        missed = [index for index in range(count) if done[index] != lengths[index]]
        self._inline_missed(done[missed[0]])
        failures: Failures = [None] * count
        rest = [self.preadv(offsets[index], iov.segment(index)) for index in missed]
        for index, error in zip(missed, await gather(rest), strict=True):
            failures[index] = error
        return failures

    def read_early(self, offset: int, length: int) -> bytes | None:
        if self.direct:
            return None
        found = b""
        while len(found) < length:
            part = os.pread(self.fd, length - len(found), offset + len(found))
            if not part:
                break
            found += part
        return found

    def _inline_missed(self, done: int) -> None:
        """Skip inline reads for a while, or for good if the file system doesn't support them."""
        self._inline_pause = INLINE_PAUSE
        if done < 0 and done not in _AGAIN:
            self._inline = None

    async def _continue_read(self, offset: int, iov: IoVec, result: int) -> None:
        """Continue after a read that was short or failed."""
        position = 0
        while True:
            if result < 0 and result not in _AGAIN:
                raise os_error(-result)
            position += max(result, 0)
            if position == iov.nbytes:
                return
            if result == 0 or position & (self.limits.request_alignment - 1):
                iov.slice(position, iov.nbytes).fill(0)  # past the end of the file
                return
            rest = iov.slice(position, iov.nbytes)
            result = await self._aio.preadv(self.fd, rest, offset + position)

    # Writing.

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        done = await self._aio.pwritev(self.fd, iov, offset)
        if done != iov.nbytes:
            await self._continue_write(offset, iov, done)

    @property
    def grows_by_writing(self) -> bool:
        return True  # for a device, the kernel decides

    def written_past_end(self, size: int) -> None:
        self._size = max(self._size, size)

    async def _continue_write(self, offset: int, iov: IoVec, result: int) -> None:
        """Continue after a write that was short or failed."""
        position = 0
        while True:
            if result < 0 and result not in _AGAIN:
                raise os_error(-result)
            if result == 0:
                raise os_error(errno.ENOSPC)
            position += max(result, 0)
            if position == iov.nbytes:
                return
            position &= -self.limits.request_alignment  # a part of a block is written again
            rest = iov.slice(position, iov.nbytes)
            result = await self._aio.pwritev(self.fd, rest, offset + position)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        if offset + length > self._size:
            if not flags & WriteFlags.MAY_UNMAP and await self._extend(offset, length):
                return
            old_size = self._size
            await self.truncate(offset + length)
            length = max(old_size - offset, 0)
        if not length:
            return
        if flags & WriteFlags.MAY_UNMAP and await self._try_mode(FALLOC_PUNCH_HOLE, offset, length):
            return
        if await self._try_mode(FALLOC_ZERO_RANGE, offset, length):
            return
        # The file system can punch holes only: punch one, and allocate storage again.
        if await self._try_mode(FALLOC_PUNCH_HOLE, offset, length) and (
            await self._try_mode(0, offset, length)
        ):
            return
        raise os_error(errno.ENOTSUP)

    async def _extend(self, offset: int, length: int) -> bool:
        """Extend the file by allocated zeroes; return whether the file system can."""
        mode = FALLOC_ZERO_RANGE if offset < self._size else 0
        if not await self._try_mode(mode, offset, length, keep_size=0):
            return False
        self._size = self._read_size()
        return True

    async def pdiscard(self, offset: int, length: int) -> None:
        if not await self._try_mode(FALLOC_PUNCH_HOLE, offset, length):
            raise os_error(errno.ENOTSUP)

    async def _try_mode(
        self, mode: int, offset: int, length: int, keep_size: int = FALLOC_KEEP_SIZE
    ) -> bool:
        """Call fallocate(2); return whether the file system supports it; raises other errors."""
        if mode not in self._modes:
            return False
        result = await self._retry(
            lambda: self._aio.fallocate(self.fd, mode | keep_size, offset, length)
        )
        if result in (-errno.EOPNOTSUPP, -errno.ENOSYS, -errno.ENODEV):
            self._modes.discard(mode)
            return False
        if result < 0:
            raise os_error(-result)
        return True

    async def _retry(self, start: Callable[[], Completion[int]]) -> int:
        while True:
            result = await start()
            if result not in _AGAIN:
                return result

    # The rest.

    def extent_map(self) -> ExtentMap:
        return ExtentMap(
            ExtentKind.LINEAR,
            self._size,
            fd=self.fd,
            alignment=self.limits.request_alignment if self.direct else 1,
            writable=self._fd_writable,
            buffered=not self.direct,
            zero_range=FALLOC_ZERO_RANGE in self._modes,
            flush=Treatment.FILE if self._fd_writable else Treatment.IGNORE,
            discard=Treatment.FILE if FALLOC_PUNCH_HOLE in self._modes else Treatment.ASK,
            sync=None if self.direct else self._sync,
        )

    async def flush(self) -> None:
        """Flush with fdatasync(2). Once a flush has failed, all later ones fail.

        The kernel reports a write-back error once, and may have dropped the data. So a later or
        concurrent success doesn't mean that this data is safe. Therefore one call runs at a time,
        for all callers that wait.
        """
        if self._fd_writable:
            await self._flushes.join()

    async def _flush(self) -> None:
        await self._sync.begin()
        try:
            if not self._sync.error:
                result = await self._retry(lambda: self._aio.fdatasync(self.fd))
                if result == 0:
                    return
                if self.direct:  # no data of ours is in the page cache
                    raise os_error(-result)
                self._sync.error = -result
            raise os_error(self._sync.error)
        finally:
            self._sync.end()

    async def truncate(self, size: int) -> None:
        with errors_as(OSError, "Failed to resize the file"):
            await self._aio.call(lambda: os.ftruncate(self.fd, size))
        self._size = self._read_size()


def _opened_for_writing(options: Any, perm: Perm) -> bool:
    """Return whether to open a node's file writable if its users take `perm`."""
    if options.read_only:
        return False
    return bool(perm & _WRITERS) or not options.auto_read_only
