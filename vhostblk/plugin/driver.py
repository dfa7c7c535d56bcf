# SPDX-License-Identifier: Apache-2.0
"""`Driver`: the base class of plug-in drivers."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from vhostblk.errors import os_error
from vhostblk.plugin.child import Child, Extent
from vhostblk.schema.blockdev import BlockdevOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Buffer


O = TypeVar("O", bound=BlockdevOptions)  # noqa: E741
C = TypeVar("C")
F = TypeVar("F", bound="Callable[..., Any]")


def absent(method: F) -> F:
    """Mark a method as a place-holder: a driver that doesn't override it lacks the operation."""
    method.absent = True  # type: ignore[attr-defined]
    return method


def has(driver: object, operation: str) -> bool:
    """Return whether a driver implements an operation."""
    return not getattr(getattr(driver, operation), "absent", False)


def unsupported() -> OSError:
    """Return the error for an operation that the driver doesn't implement."""
    return os_error(errno.ENOTSUP)


class DriverBase(ABC, Generic[O, C]):
    """The common base of both kinds of drivers; `C` is the type of their children."""

    #: The struct of the options; its tag is the driver's name.
    options_type: ClassVar[type[BlockdevOptions]]

    #: Offset and length of requests are multiples of this power of two, at least 512. For other
    #: requests the block layer does read-modify-write, and keeps other writes off meanwhile.
    request_alignment: int = 512
    #: The maximum length of a read or write; longer ones are split.
    max_transfer: int = 1 << 20
    #: Shorter discards have no effect; 0: the alignment.
    discard_granularity: int = 0
    #: The preferred length of requests; 0: none.
    optimal_transfer: int = 0
    #: Options that `blockdev-reopen` may change; `options` is then replaced.
    mutable_options: ClassVar[frozenset[str]] = frozenset()
    #: Children that may be replaced by nodes with other data: the driver caches nothing that it has
    #: read from them. `size()` is called again afterwards. A filter may always be inserted below a
    #: driver.
    replaceable_children: ClassVar[frozenset[str]] = frozenset()
    #: Children that the driver may write to past their end.
    growing_children: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, options: O, children: Mapping[str, C], *, read_only: bool) -> None:
        """Create the driver. Setting up, which may fail, belongs in `open()`."""
        self.options = options
        #: The child nodes, by the names of the options that name or define them.
        self.children = children
        #: Whether writes are refused. `open()` may set it, too.
        self.read_only = read_only

    @abstractmethod
    def size(self) -> int:
        """Return the length of the disk in bytes, a multiple of 512.

        It is called after `open()` and after `truncate()`. At other times the length must not
        change.
        """


class Driver(DriverBase[O, Child]):
    """A disk with coroutines, on the event loop's thread. Only `size` and `read` are required.

    *Requests* are inside [0, size), aligned, and no longer than the class says. Many are in flight
    at a time, and none waits for another. A driver without `write` is read-only. Without
    `write_zeroes`, zeroes are written as data. Without `discard`, discards are ignored; with it,
    they are passed on if the node has the option `discard=unmap`. Without `flush`, the children are
    flushed. Without `block_status`, all is data.

    *Errors.* An OSError fails the request with its errno; any other exception fails it with EIO.
    Both are logged with their traceback, at a limited rate. If `write_zeroes` or `discard` raises
    ENOTSUP, the request is handled as if the driver lacked the operation. To report an error to the
    user who opens the disk, `open()` raises `DriverError`.

    *Coroutines run without a task*, which saves most of the time of a small request.
    `asyncio.timeout()`, task groups and libraries that use them need a task: set `uses_tasks`.
    """

    #: Run the coroutines in asyncio tasks.
    uses_tasks: ClassVar[bool] = False

    async def open(self) -> None:
        """Set up the driver; the children are open. An exception makes opening the node fail."""

    async def close(self) -> None:
        """Release all resources. No request is in flight, and none follows."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> Buffer:
        """Return `length` bytes: `bytes`, or an object with a contiguous buffer (a numpy array)."""

    @absent
    async def write(self, offset: int, data: bytes) -> None:
        """Store `data`, a copy of the guest's data that the driver may keep."""
        raise unsupported()

    @absent
    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; its storage may be deallocated."""
        raise unsupported()

    @absent
    async def discard(self, offset: int, length: int) -> None:
        """Deallocate the storage of a range; its content becomes undefined."""
        raise unsupported()

    @absent
    async def flush(self) -> None:
        """Put every completed write on stable storage."""

    @absent
    async def block_status(self, offset: int, length: int) -> Extent:
        """Return the status of the run at `offset`."""
        return Extent(length)

    @absent
    async def truncate(self, size: int) -> None:
        """Change the length of the disk. The text of an OSError is shown to the user."""
        raise unsupported()
