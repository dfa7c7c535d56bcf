# SPDX-License-Identifier: Apache-2.0
"""Fuzzes a front-end's session, down to the queues: `python -m fuzz vhost_user CORPUS`.

An input is a script. The front-end sends messages of any kind with real descriptors, writes guest
memory, kicks, truncates what it shares; the block layer drains and resizes; the loop turns.
Messages go through the decoder to a `Session` on the export's own device, on either lane, with a
disk of `null-co` or `null-aio` behind it. What is missing is the socket, the server's
(`tests/vhost_user/test_server.py`).

A session may end with a VhostUserError, never otherwise. What has to be answered is answered, and
once the front-end has gone no descriptor, mapping or task is left.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import os
import socket
import tempfile
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any

import msgspec

from fuzz.harness import Harness
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.permissions import Perm
from vhostblk.engine import load
from vhostblk.engine.iothreads import Iothreads
from vhostblk.exports.vhost_user_blk.device import VhostUserBlkDevice
from vhostblk.schema.blockdev import BlockdevOptions
from vhostblk.schema.convert import from_json
from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk
from vhostblk.vhost_user.codec import MessageDecoder
from vhostblk.vhost_user.errors import VhostUserError
from vhostblk.vhost_user.layout import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    VERSION,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.session import Session
from vhostblk.virtio_blk.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.vhost_user.codec import Message

#: Bits of the first byte.
EXPRESS, WRITABLE, SLOW, MANY_QUEUES = (1 << bit for bit in range(4))

#: Steps by their first byte; below WRITE it is a message's number.
WRITE, KICK, TURN, TRUNCATE, RAW, DRAIN, RESIZED, REQUEST, ANSWER = range(0xE0, 0xE9)

#: A message after its number: flags (low half) and which descriptors (high half), payload length.
MESSAGE = Struct("BB")
#: What is written to guest memory: offset, length; then the bytes.
PATCH = Struct("<HB")
#: A request by an honest driver: type, sector, 512-byte units, free-running index of its head.
ORDER = Struct("BBBB")

#: Guest memory, mapped by seeds at guest address 0, user address `USER`.
MEMORY_BYTES = 1 << 16
USER = 0x10_0000
#: Where seeds put the ring of queue 0, which has 8 entries, and what requests use.
DESC, AVAIL, USED, HEADERS, STATUSES, DATA = 0, 0x400, 0x800, 0x1000, 0x2000, 0x4000
RING = 8

_MEMORY_NAME = "vhostblk-fuzz"
_MAX_STEPS = 96
_DESCRIPTOR = Struct("<QIHH")

_harness = Harness()
_iothreads = Iothreads()
atexit.register(_iothreads.close)
_tried = 0


class _Frontend:
    """What a front-end has: memory that it shares, eventfds, and worse things to hand over."""

    def __init__(self) -> None:
        self.memory = os.memfd_create(_MEMORY_NAME)
        os.truncate(self.memory, MEMORY_BYTES)
        self.small = os.memfd_create(_MEMORY_NAME)
        os.truncate(self.small, 8 * 4096)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0)
        self.near, self.far = socket.socketpair()
        self.reader, self.writer = os.pipe()
        self.null = os.open("/dev/null", os.O_RDWR)
        self.zero = os.open("/dev/zero", os.O_RDWR)
        self.directory = os.open("/", os.O_RDONLY)
        with tempfile.TemporaryFile() as file:
            file.truncate(4096)
            self.unwritable = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        #: As the back-end made it, once asked.
        self.inflight = os.memfd_create("inflight")
        os.truncate(self.inflight, 1 << 16)

    def fds(self, choice: int) -> list[int]:
        """Return descriptors to send, copies each time."""
        chosen = (
            (),
            (self.kick,),
            (self.memory,),
            (self.small,),
            (self.memory, self.memory),
            (self.memory, self.small),
            (self.far.fileno(),),
            (self.writer,),
            (self.null,),
            (self.directory,),
            (self.call,) * 8,
            (self.inflight,),
            (self.call,),
            (self.unwritable,),
            (self.kick, self.call),
            (self.zero,),
        )[choice & 15]
        return [os.dup(fd) for fd in chosen]

    def close(self) -> None:
        self.near.close()
        self.far.close()
        for fd in (
            *(self.memory, self.small, self.kick, self.call, self.reader, self.writer),
            *(self.null, self.zero, self.directory, self.unwritable, self.inflight),
        ):
            os.close(fd)


def one_input(data: bytes) -> None:
    """Try one input; raises what is wrong."""
    global _tried
    if not data:
        return
    before = _open_fds() if _tried else 0
    _harness.run(_serve(data))
    _tried += 1
    if before and _open_fds() > before:
        gc.collect()  # exceptions keep frames alive, in cycles
        after = _open_fds()
        if after > before:
            _harness.problems.append(f"{after - before} descriptors left")
    if _tried % 64 == 0:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        if f"/memfd:{_MEMORY_NAME}" in maps:
            _harness.problems.append("guest memory is still mapped")
    _harness.check()


def _open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def _serve(data: bytes) -> None:
    """Run one front-end from connection to leaving."""
    flags = data[0]
    driver = "null-aio" if flags & SLOW else "null-co"
    graph, frontend = Graph(), _Frontend()
    options = {"driver": driver, "node-name": "disk", "size": 1 << 20, "read-zeroes": True}
    node = await graph.add(from_json(BlockdevOptions, options))
    backend = BlockBackend("fuzz", Perm.CONSISTENT_READ | (Perm.WRITE if flags & WRITABLE else 0))
    backend.attach(graph, node)
    device = VhostUserBlkDevice(_export_options(flags), backend, _iothreads)
    express = load() is not None
    if express:
        _iothreads.start(())  # with the first input already: its descriptors stay
    device.queues._maker.lane = Lane.EXPRESS if flags & EXPRESS and express else Lane.PYTHON
    backend.add_drain_listener(device)
    await device.prepare()
    try:
        run = _Run(device, backend, frontend)
        try:
            await run.steps(data)
        except VhostUserError as error:
            if "\n" in str(error):
                raise AssertionError(f"not one line: {error}") from error
        finally:
            await run.leave()
    finally:
        backend.remove_drain_listener(device)
        await backend.detach()
        await graph.close()
        frontend.close()


def _export_options(flags: int) -> BlockExportOptionsVhostUserBlk:
    return msgspec.convert(
        {
            "type": "vhost-user-blk",
            "id": "e",
            "node-name": "disk",
            "addr": {"type": "unix", "path": "unused"},
            "writable": bool(flags & WRITABLE),
            "num-queues": 4 if flags & MANY_QUEUES else 1,
        },
        BlockExportOptionsVhostUserBlk,
    )


class _Run:
    """The script, taken step by step."""

    def __init__(
        self, device: VhostUserBlkDevice, backend: BlockBackend, frontend: _Frontend
    ) -> None:
        self._device, self._backend, self._frontend = device, backend, frontend
        self._session = Session(device)
        self._decoder = MessageDecoder()
        self._protocol = 0
        self._gone = False
        device.set_disconnect(self._disconnect)
        self._others: dict[int, Callable[[memoryview], Any]] = {
            WRITE: self._write,
            KICK: self._kick,
            TURN: self._turn,
            TRUNCATE: self._truncate,
            RAW: self._raw,
            DRAIN: self._drain,
            RESIZED: self._resized,
            REQUEST: self._request,
            ANSWER: self._answer,
        }

    def _disconnect(self, _reason: str) -> None:
        self._gone = True

    async def steps(self, data: bytes) -> None:
        """Take every step; raises VhostUserError where the session ends."""
        rest = memoryview(data)[1:]
        for _ in range(_MAX_STEPS):
            if not rest or self._gone:
                return
            kind, rest = rest[0], rest[1:]
            if kind < WRITE:
                used = await self._message(kind, rest)
            elif kind in self._others:
                used = await self._others[kind](rest)
            else:
                used = 0
            rest = rest[used:]

    async def leave(self) -> None:
        """Do what the server does when a front-end has gone."""
        self._decoder.close()
        self._session.close()
        self._device.set_disconnect(None)
        self._device.set_channel(None)
        await self._device.reset()

    async def _message(self, number: int, rest: memoryview) -> int:
        if len(rest) < MESSAGE.size:
            return len(rest)
        flags, length = rest[0], rest[1]
        payload = bytes(rest[MESSAGE.size :][:length])
        fds = self._frontend.fds(flags >> 4)
        header = HEADER.pack(number, (flags & 0xF) ^ VERSION, len(payload))
        await self._feed(header + payload, fds)
        return MESSAGE.size + length

    async def _feed(self, stream: bytes, fds: list[int]) -> None:
        """Send bytes, read as the server does: no further than the decoder wants."""
        while stream:
            piece, stream = stream[: self._decoder.wanted], stream[self._decoder.wanted :]
            message = self._decoder.feed(piece, fds)
            fds = []
            if message is not None:
                await self._handle(message)

    async def _handle(self, message: Message) -> None:
        answer = await self._session.handle(message)
        fds = answer.fds.take_all()
        if fds:
            os.close(self._frontend.inflight)
            (self._frontend.inflight,) = fds
        reply = answer.reply
        if message.request == Request.SET_PROTOCOL_FEATURES and answer.failure is None:
            self._protocol = int.from_bytes(message.payload, "little")
        if message.flags & FLAG_NEED_REPLY and self._protocol & ProtocolFeature.REPLY_ACK:
            assert reply, f"{message.name} is not answered"
        if reply:
            request, flags, size = HEADER.unpack_from(reply)
            assert (request, flags) == (message.request, VERSION | FLAG_REPLY)
            assert size == len(reply) - HEADER.size

    async def _raw(self, rest: memoryview) -> int:
        """Send bytes that need be no message; what follows begins in the middle of one."""
        length = min(rest[0] if rest else 0, len(rest) - 1)
        await self._feed(bytes(rest[1 : 1 + length]), [])
        return 1 + max(length, 0)

    # What needs no socket.

    async def _write(self, rest: memoryview) -> int:
        if len(rest) < PATCH.size:
            return len(rest)
        offset, length = int.from_bytes(rest[:2], "little"), rest[2]
        content = bytes(rest[PATCH.size : PATCH.size + length])
        os.pwrite(self._frontend.memory, content[: MEMORY_BYTES - offset], offset)
        return PATCH.size + length

    async def _kick(self, _rest: memoryview) -> int:
        os.eventfd_write(self._frontend.kick, 1)
        await asyncio.sleep(0)
        return 0

    async def _turn(self, rest: memoryview) -> int:
        for _ in range(1 + (rest[0] & 15) if rest else 1):
            await asyncio.sleep(0)
        return 1

    async def _truncate(self, rest: memoryview) -> int:
        if load() is not None:  # which catches SIGBUS
            os.truncate(self._frontend.small, (rest[0] if rest else 0) % 16 * 4096)
        return 1

    async def _drain(self, _rest: memoryview) -> int:
        async with self._backend.drained():
            await asyncio.sleep(0)
        return 0

    async def _answer(self, rest: memoryview) -> int:
        """Write to the back-end's own channel: answers, or anything; without bytes, close it."""
        length = rest[0] if rest else 0
        with contextlib.suppress(OSError):  # closed, or full
            if length:
                self._frontend.near.send(bytes(rest[1 : 1 + length]), socket.MSG_DONTWAIT)
            else:
                self._frontend.near.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0)
        return 1 + length

    async def _resized(self, _rest: memoryview) -> int:
        self._device.resized()
        return 0

    async def _request(self, rest: memoryview) -> int:
        """Make a well-formed request available, as seeds have laid out the ring, and kick."""
        if len(rest) < ORDER.size:
            return len(rest)
        kind, sector, units, index = ORDER.unpack_from(rest)
        memory, slot = self._frontend.memory, index % RING
        first = 3 * slot % RING
        os.pwrite(memory, Struct("<IIQ").pack(kind, 0, sector), HEADERS + 16 * slot)
        write = 2 if kind in (0, 8, 15, 16) else 0
        for number, (addr, length, flags) in enumerate(
            (
                (HEADERS + 16 * slot, 16, 1),
                (DATA, 512 * units, 1 | write),
                (STATUSES + slot, 1, 2),
            )
        ):
            place = (first + number) % RING
            after = (place + 1) % RING
            os.pwrite(memory, _DESCRIPTOR.pack(addr, length, flags, after), DESC + 16 * place)
        os.pwrite(memory, first.to_bytes(2, "little"), AVAIL + 4 + 2 * slot)
        os.pwrite(memory, (index + 1).to_bytes(2, "little"), AVAIL + 2)
        await self._kick(rest)
        return ORDER.size
