# SPDX-License-Identifier: Apache-2.0
"""`test-reader`: one client after the other gets the disk's first sector."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from tests.kinds.reader.carried import CarriedReader, decode
from tests.kinds.reader.options import ReaderOptions
from vhostblk.block import SECTOR
from vhostblk.block.io.iovec import IoVec
from vhostblk.exports.base import Export
from vhostblk.exports.totals import nothing
from vhostblk.net.listener import Listener, UnixAddress, listen

if TYPE_CHECKING:
    import msgspec

    from vhostblk.exports.base import Carried, Descriptors
    from vhostblk.schema.export import BlockExportOptions


class ReaderExport(Export):
    """An export that sends the first sector to each client."""

    options_type: ClassVar[type[BlockExportOptions]] = ReaderOptions

    def __init__(self, options: ReaderOptions, backend: Any, iothreads: Any) -> None:
        super().__init__(options, backend, iothreads)
        self._address = UnixAddress(options.path)
        self._listener: Listener | None = None
        self._serving: asyncio.Task[None] | None = None
        #: Held while a client is served.
        self._turn = asyncio.Lock()
        #: Set when no other process may accept clients.
        self._ours = asyncio.Event()
        self._counted = nothing()

    @classmethod
    def connect_hint(cls, options: ReaderOptions) -> list[str] | None:
        """Return QEMU's arguments that connect to the socket."""
        return ["-chardev", f"socket,id={options.id},path={options.path}"]

    @classmethod
    def decode(cls, state: msgspec.Raw, fds: Descriptors) -> tuple[Carried, list[str | None]]:
        """Decode the listening socket."""
        return decode(state, fds)

    async def start(self, carried: CarriedReader | None = None, *, movable: bool = False) -> None:
        """Listen; with `carried`, continue once `resume` is called."""
        if carried is None:
            self._listener = listen(self._address)
            self._ours.set()
        else:
            self._listener = carried.listener
        self._serving = asyncio.get_running_loop().create_task(self._serve(self._listener))

    def resume(self) -> None:
        """Accept clients."""
        super().resume()
        self._ours.set()

    async def suspend(self) -> CarriedReader:
        """Stop accepting clients; they wait in the socket's queue."""
        await self._end()
        listener, self._listener = self._listener, None
        assert listener is not None
        return CarriedReader(listener)

    async def stop(self) -> None:
        """Stop accepting clients, and remove the socket."""
        await self._end()
        if self._listener is not None:
            self._listener.close()

    @property
    def clients(self) -> int:
        """Whether a client is being served."""
        return int(self._turn.locked())

    @property
    def made_files(self) -> list[str]:
        """The socket's file."""
        path = None if self._listener is None else self._listener.path
        return [] if path is None else [path]

    def statistics(self) -> dict[int, dict[str, Any]]:
        """Return the statistics of reads."""
        return {0: self._counted}

    async def _end(self) -> None:
        assert self._serving is not None
        async with self._turn:
            self._serving.cancel()
        with suppress(asyncio.CancelledError):
            await self._serving

    async def _serve(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        await self._ours.wait()
        while True:
            client, _ = await loop.sock_accept(listener.socket)
            with client:
                async with self._turn:
                    data = bytearray(SECTOR)
                    async with self.backend.request():
                        await self.backend.preadv(0, IoVec.from_buffers([data]))
                    await loop.sock_sendall(client, data)
                    self._counted["read"]["operations"] += 1
                    self._counted["read"]["bytes"] += SECTOR
