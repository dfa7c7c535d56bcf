# SPDX-License-Identifier: Apache-2.0
"""The node of a plug-in driver: translates between the block layer and an untrusted driver.

Only data of the right length and OSErrors get from a driver to the block layer. Each failure of the
driver is logged with its traceback, at a limited rate. For a wrong result the log says what was
expected.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from vhostblk.block import SECTOR
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.edge import MAX_SIZE
from vhostblk.block.graph.node import BlockLimits, BlockNode, BlockStatus
from vhostblk.block.graph.node import Extent as NodeExtent
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import VhostblkError, errno_of, errors_as, os_error, reason
from vhostblk.plugin.child import Child, Extent, SyncChild
from vhostblk.plugin.driver import Driver, has
from vhostblk.plugin.sync import SyncDriver, Threaded
from vhostblk.ratelimit import RateLimitedLogger
from vhostblk.schema.base import UNSET
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import members_of, without_title

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from collections.abc import Set as AbstractSet

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec

logger = logging.getLogger(__name__)

#: Operations that are coroutine functions in a `Driver`, and plain functions in a `SyncDriver`.
_OPERATIONS = (
    *("open", "close", "read", "write", "write_zeroes", "discard", "flush"),
    *("block_status", "truncate"),
)


class PluginError(Exception):
    """A driver violated the interface."""


@functools.cache
def node_class(driver_class: type[Driver[Any] | SyncDriver[Any]]) -> type[PluginNode]:
    """Return the node class for a driver; raises BlockError if the class is not a driver."""
    name = driver_class.options_type.__struct_config__.tag
    if not issubclass(driver_class, Driver | SyncDriver):
        raise BlockError(
            f"Driver '{name}': {driver_class.__name__} derives neither from "
            "vhostblk.plugin.Driver nor from SyncDriver"
        )
    if missing := sorted(driver_class.__abstractmethods__):
        raise BlockError(
            f"Driver '{name}': {driver_class.__name__} has no {' and no '.join(missing)}"
        )
    for operation in (*_OPERATIONS, "size"):
        is_coroutine = inspect.iscoroutinefunction(getattr(driver_class, operation))
        if is_coroutine != (issubclass(driver_class, Driver) and operation != "size"):
            should = "a plain function" if is_coroutine else "a coroutine function (async def)"
            raise BlockError(f"Driver '{name}': {operation}() must be {should}")
    members = {
        "driver": name,
        "driver_class": driver_class,
        "mutable_options": driver_class.mutable_options,
        "data_options": driver_class.mutable_options,
    }
    return type(f"{driver_class.__name__}Node", (PluginNode,), members)


def child_members(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the options that name or define a child."""
    struct: Any = type(options)
    for member in members_of(struct):
        if without_title(member.schema)[1] == "BlockdevRef":
            value = getattr(options, member.name)
            if value is not UNSET:
                yield member.name, value


class PluginNode(BlockNode):
    """A node with a plug-in driver. Each driver has a subclass (`node_class()`)."""

    driver_class: ClassVar[type[Driver[Any] | SyncDriver[Any]]]
    reopens = True

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        self.read_only = options.read_only
        self._size = self._former_size = 0
        self._log = RateLimitedLogger(logger, f"node '{node_name}': driver '{self.driver}': ")
        self._threads: Threaded | None = None

    # Opening and closing.

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = cls(node_name, options)
        for role, ref in child_members(options):
            await graph.open_child(node, role, ref)
        node.exchangeable_roles = frozenset(node.children)
        node.remembered_roles = node.exchangeable_roles - cls.driver_class.replaceable_children
        await node._open_driver()
        return node

    async def _open_driver(self) -> None:
        children: dict[str, Any] = {role: Child(self, role) for role in self.children}
        if issubclass(self.driver_class, SyncDriver):
            loop = asyncio.get_running_loop()
            children = {role: SyncChild(child, loop) for role, child in children.items()}
        try:
            self._driver = self.driver_class(self.options, children, read_only=self.read_only)
        except Exception as error:
            raise self._open_failure(error) from error
        self._bind()
        try:
            await self._operations.open()
        except BaseException as error:
            self._stop_threads()
            raise self._open_failure(error) from error
        try:
            self._take_driver(await self._ask_size())
        except BaseException as error:
            await self.close()
            raise self._open_failure(error) from error

    def _bind(self) -> None:
        """Set the function for each operation."""
        driver = self._driver
        self._operations: Any = driver
        if isinstance(driver, SyncDriver):
            self._operations = self._threads = Threaded(driver, self.node_name)
        self._read: Callable[[int, int], Awaitable[Any]] = self._operations.read
        self._write: Callable[[int, bytes], Awaitable[Any]] = self._operations.write
        if getattr(driver, "uses_tasks", False):
            self._read, self._write = _in_task(self._read), _in_task(self._write)

    def _take_driver(self, size: int) -> None:
        driver = self._driver
        self._size = size
        self._is_writer = has(driver, "write") and not driver.read_only
        self.read_only = self.read_only or not self._is_writer
        alignment = driver.request_alignment
        if not _is_count(alignment) or alignment < SECTOR or alignment & (alignment - 1):
            raise PluginError(f"request_alignment is {alignment!r}, not a power of two from 512 up")
        if not _is_count(driver.max_transfer) or driver.max_transfer < alignment:
            raise PluginError(f"max_transfer is {driver.max_transfer!r}, less than the alignment")
        self.limits = BlockLimits(
            request_alignment=alignment,
            max_transfer=driver.max_transfer,
            max_iov=1 << 30,
            discard_granularity=driver.discard_granularity,
            optimal_transfer=driver.optimal_transfer,
        )

    def _open_failure(self, error: BaseException) -> BaseException:
        """Return the error for a driver that failed to open. Unexpected exceptions are logged."""
        if _is_cancellation(error):
            return error
        if isinstance(error, PluginError):
            return BlockError(f"Driver '{self.driver}': {error}")
        if isinstance(error, BlockError):
            return error
        if isinstance(error, OSError | VhostblkError):
            return BlockError(f"Could not open '{self.node_name}': {reason(error)}")
        self._log.error("open failed", exc_info=error)
        return BlockError(f"Could not open '{self.node_name}': {type(error).__name__}: {error}")

    async def close(self) -> None:
        try:
            await self._operations.close()
        except BaseException as error:
            if _is_cancellation(error):
                raise
            self._log.error("close failed", exc_info=error)
        finally:
            self._stop_threads()

    def _stop_threads(self) -> None:
        if self._threads is not None:
            self._threads.stop()

    def prepare_reopen(self, options: Any) -> None:
        # If the driver was opened for writing, the graph keeps writers off a read-only node.
        if self._driver.read_only and has(self._driver, "write") and not options.read_only:
            raise BlockError(
                f"Block format '{self.driver}' used by node '{self.node_name}' does not support "
                "reopening files"
            )

    async def load_other_data(self, roles: AbstractSet[str]) -> None:
        self._former_size = self._size
        await super().load_other_data(roles)
        with errors_as(BlockError, f"Could not reopen '{self.node_name}'"):
            self._size = await self._guard("size", self._ask_size)

    def drop_other_data(self) -> None:
        self._size = self._former_size

    def take_options(self, options: Any) -> None:
        super().take_options(options)
        self._driver.options = options
        self.read_only = options.read_only or not self._is_writer

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        if perm & Perm.WRITE and role in self.driver_class.growing_children:
            perm |= Perm.RESIZE
        return perm, shared

    # The size.

    @property
    def size(self) -> int:
        return self._size

    async def _ask_size(self) -> int:
        size = self._operations.size()
        if self._threads is not None:
            size = await size
        if not _is_count(size) or size % SECTOR or size > MAX_SIZE:
            raise PluginError(f"size() returned {size!r}, which is not a size in whole sectors")
        return int(size)

    async def _watch_size(self) -> None:
        """Log a changed size of the driver; the node keeps its size."""
        size = await self._ask_size()
        if size != self._size:
            raise PluginError(f"size() changed from {self._size} to {size}")

    async def truncate(self, size: int) -> None:
        if not has(self._driver, "truncate"):
            await super().truncate(size)
        await self._guard("truncate", self._operations.truncate, size)
        self._size = await self._guard("size", self._ask_size)

    # Requests. The first two are the hot path, and do as little as possible.

    async def preadv(self, offset: int, iov: IoVec) -> None:
        try:
            data = await self._read(offset, iov.nbytes)
            if type(data) is not bytes or len(data) != iov.nbytes:
                data = _checked_data(data, iov.nbytes)
            iov.copy_from(data)
        except BaseException as error:
            raise self._failed(f"read({offset}, {iov.nbytes})", error) from None

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        try:
            await self._write(offset, iov.to_bytes())
        except BaseException as error:
            raise self._failed(f"write({offset}, {iov.nbytes} bytes)", error) from None

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        await self._guard("write_zeroes", self._operations.write_zeroes, offset, length)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._guard("discard", self._operations.discard, offset, length)

    async def flush(self) -> None:
        if has(self._driver, "flush"):
            await self._guard("flush", self._operations.flush)
        else:
            await self.flush_children()
        await self._guard("size", self._watch_size)

    async def block_status(self, offset: int, length: int) -> NodeExtent:
        if not has(self._driver, "block_status"):
            return await super().block_status(offset, length)
        extent: NodeExtent = await self._guard("block_status", self._ask_status, offset, length)
        return extent

    async def _ask_status(self, offset: int, length: int) -> NodeExtent:
        found = await self._operations.block_status(offset, length)
        if not isinstance(found, Extent) or not _is_count(found.length) or not found.length:
            raise PluginError(f"block_status() returned {found!r}, which is not an Extent")
        status = BlockStatus.ZERO if found.zero else BlockStatus.DATA
        if not found.hole:
            status |= BlockStatus.ALLOCATED
        return NodeExtent(min(found.length, length), status)

    async def _guard(self, name: str, operation: Callable[..., Awaitable[Any]], *args: int) -> Any:
        try:
            if getattr(self._driver, "uses_tasks", False):
                operation = _in_task(operation)
            return await operation(*args)
        except BaseException as error:
            raise self._failed(f"{name}({', '.join(map(str, args))})", error) from None

    def _failed(self, what: str, error: BaseException) -> BaseException:
        """Log an exception of the driver; return the error for the request."""
        if _is_cancellation(error):
            return error
        if not isinstance(error, OSError):
            self._log.error("%s failed", what, exc_info=error)
            return os_error(errno.EIO)
        if error.errno == errno.ENOTSUP:
            return error
        self._log.error("%s failed", what, exc_info=error)
        return OSError(errno_of(error), reason(error))

    # For queries.

    @property
    def strong_options(self) -> dict[str, Any]:
        struct: Any = type(self.options)
        common = {member.name for member in members_of(BlockdevOptions)}
        common |= {role for role, _ in child_members(self.options)}
        return {
            member.wire_name: msgspec.to_builtins(value)
            for member in members_of(struct)
            if member.name not in common
            and (value := getattr(self.options, member.name)) is not UNSET
            and (member.required or value != member.default)
        }


def _in_task(operation: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def run(*args: Any) -> Any:
        return await asyncio.get_running_loop().create_task(operation(*args))

    return run


def _is_cancellation(error: BaseException) -> bool:
    """Return whether our own coroutine is being closed: a driver may raise the same exceptions."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, GeneratorExit)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _checked_data(data: Any, length: int) -> memoryview:
    """Return the data of a driver's read, after checking it; raises PluginError."""
    try:
        view = memoryview(data)
    except TypeError:
        raise PluginError(f"returned {type(data).__name__}, which is not bytes-like") from None
    if not view.c_contiguous:
        raise PluginError("returned data that is not contiguous")
    if view.nbytes != length:
        raise PluginError(f"returned {view.nbytes} bytes, not {length}")
    return view.cast("B")
