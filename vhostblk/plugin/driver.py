# SPDX-License-Identifier: Apache-2.0
"""`Driver`: what the author of a plug-in derives from."""

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
    """Mark a method of a base class: a driver without its own does not have this operation."""
    method.absent = True  # type: ignore[attr-defined]
    return method


def has(driver: object, operation: str) -> bool:
    """Tell whether a driver has an operation, rather than a base class's place-holder."""
    return not getattr(getattr(driver, operation), "absent", False)


def unsupported() -> OSError:
    """Make the error of an operation that the driver doesn't have."""
    return os_error(errno.ENOTSUP)


class DriverBase(ABC, Generic[O, C]):
    """What both kinds of driver have in common; `C` is the type of their children."""

    #: The struct of the options. Its tag is the driver's name.
    options_type: ClassVar[type[BlockdevOptions]]

    #: Requests begin and end at multiples of this power of two; from 512 up. What does not fit is
    #: read, changed and written back by the layer above, which keeps other writes away meanwhile.
    request_alignment: int = 512
    #: The longest read or write; what is longer comes in parts.
    max_transfer: int = 1 << 20
    #: Discards of less than this are of no use; 0: the alignment.
    discard_granularity: int = 0
    #: The size of requests that the driver likes best; 0: none.
    optimal_transfer: int = 0
    #: Options that `blockdev-reopen` may change; `options` is then replaced.
    mutable_options: ClassVar[frozenset[str]] = frozenset()
    #: Children that may be replaced by others with other data: the driver keeps nothing in memory
    #: that it has read from them. `size()` is called again afterwards. A filter may always be
    #: inserted below a driver.
    replaceable_children: ClassVar[frozenset[str]] = frozenset()
    #: Children that the driver may write to past their end.
    growing_children: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, options: O, children: Mapping[str, C], *, read_only: bool) -> None:
        """Take what the driver is opened with; set up in `open()`, which may fail."""
        self.options = options
        #: The nodes below, by the names of the options that name or define them.
        self.children = children
        #: Nothing is written. `open()` may set it, too.
        self.read_only = read_only

    @abstractmethod
    def size(self) -> int:
        """Return the length of the disk in bytes, a multiple of 512.

        It is asked for after `open()` and after `truncate()`; otherwise it stays what it is.
        """


class Driver(DriverBase[O, Child]):
    """A disk in coroutines, on the event loop's thread. Only `size` and `read` are a must.

    *Which requests come.* All are inside [0, size), aligned and no longer than the class says.
    Many are in flight at a time; none waits for another. A driver that has no `write` is read-only.
    Without `write_zeroes`, zeroes are written. Without `discard`, discards are ignored; with it,
    they are passed on if the node has the option `discard=unmap`. Without `flush`, the children are
    flushed. Without `block_status` all is data.

    *What may go wrong.* An OSError becomes the error of the request, with its errno; any other
    exception becomes EIO. Both are logged with their traceback, at a limited rate. ENOTSUP from
    `write_zeroes` and `discard` stands for not having them, this time. A message for whoever opens
    the disk is a `DriverError` raised by `open()`.

    *Coroutines are run without a task*, which saves most of the time that a small request takes.
    `asyncio.timeout()`, task groups and libraries that use them need a task: set `uses_tasks`.
    """

    #: Run the coroutines in asyncio tasks.
    uses_tasks: ClassVar[bool] = False

    async def open(self) -> None:
        """Get ready; the children are open. What it raises keeps the node from being opened."""

    async def close(self) -> None:
        """Release everything. No request is in flight, and none follows."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> Buffer:
        """Return `length` bytes: bytes, or whatever has a contiguous buffer (a numpy array)."""

    @absent
    async def write(self, offset: int, data: bytes) -> None:
        """Store `data`, which is a copy of the guest's and the driver's to keep."""
        raise unsupported()

    @absent
    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; its storage may be given up."""
        raise unsupported()

    @absent
    async def discard(self, offset: int, length: int) -> None:
        """Give up the storage of a range; what it reads as afterwards is undefined."""
        raise unsupported()

    @absent
    async def flush(self) -> None:
        """Put every completed write on stable storage."""

    @absent
    async def block_status(self, offset: int, length: int) -> Extent:
        """Describe the run at `offset`."""
        return Extent(length)

    @absent
    async def truncate(self, size: int) -> None:
        """Change the length of the disk. The text of an OSError is shown to the user."""
        raise unsupported()
