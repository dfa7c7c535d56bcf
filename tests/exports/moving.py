# SPDX-License-Identifier: Apache-2.0
"""A front-end of a served device, in one event loop, and hand-overs between its messages.

`Script` sends messages and requests, and records all replies. A hand-over must change neither this
record, nor `Script.state`, nor the requests to the disk.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from msgspec.structs import replace

from tests.exports.support import BASE, FLUSH, WCE, make_backend
from tests.frontend.memory import MIB, Memory
from tests.frontend.ring import Segment
from tests.virtio_blk.support import HandNode, header, pattern, turns
from tests.virtqueue.kinds import KINDS
from vhostblk.engine import load
from vhostblk.engine.iothreads import Iothreads
from vhostblk.net.listener import Listener, UnixAddress
from vhostblk.vhost_user import server as server_module
from vhostblk.vhost_user.carried import Carried
from vhostblk.vhost_user.codec import FdList, Part
from vhostblk.vhost_user.layout import (
    CONFIG_HEADER,
    DEVICE_STATE,
    F_PROTOCOL_FEATURES,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    INFLIGHT,
    LOG,
    MEMORY_HEADER,
    SINGLE_REGION,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_NOFD,
    VRING_STATE,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.restate import Said
from vhostblk.vhost_user.server import VhostUserServer
from vhostblk.vhost_user.session import PROTOCOL_FEATURES, Session
from vhostblk.virtio_blk.features import Feature
from vhostblk.virtio_blk.layout import RequestType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tests.frontend.layout.vhost_user import MemoryRegion
    from vhostblk.exports.vhost_user_blk.device import VhostUserBlkDevice

QUEUES = 2
#: Rings and requests are in the first region; the second one is added and removed.
LAYOUT = ((0, MIB), (1 << 32, MIB))
#: The size of a log for all regions.
LOG_BYTES = ((1 << 32) + MIB) // 4096 // 8
INBAND = ProtocolFeature.INBAND_NOTIFICATIONS

#: Messages that always have a reply.
_OWN_REPLY = frozenset(
    {
        *(Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES, Request.GET_VRING_BASE),
        *(Request.GET_CONFIG, Request.GET_STATUS, Request.SET_LOG_BASE),
        *(Request.SET_DEVICE_STATE_FD, Request.CHECK_DEVICE_STATE, Request.POSTCOPY_END),
    }
)

#: Features that a script may acknowledge in addition to the smallest set.
CHOICES = {
    "flush": FLUSH,
    "cache": WCE,
    "event": Feature.RING_EVENT_IDX.mask,
    "discard": Feature.DISCARD.mask,
    "log": 1 << 26,
    "protocol": F_PROTOCOL_FEATURES,
}


class Script:
    """A front-end and its server, which may be replaced at any time."""

    #: The sessions that servers have made.
    sessions: ClassVar[list[Session]] = []

    def __init__(self, directory: Path, *, packed: bool, inband: bool) -> None:
        kind = KINDS["packed" if packed else "split"]
        self._features = BASE | kind.features
        self.protocol = PROTOCOL_FEATURES if inband else PROTOCOL_FEATURES & ~INBAND
        self.inband = inband
        self.memory = Memory(LAYOUT)
        self.rings = [kind.driver(self.memory, 16) for _ in range(QUEUES)]
        self._address = UnixAddress(str(directory / "e.sock"))
        self._iothreads = Iothreads()
        self.node = HandNode()
        self.device: VhostUserBlkDevice
        self._server: VhostUserServer
        self._socket: socket.socket
        #: Eventfds by purpose and queue, and shared files.
        self._events = {
            (purpose, index): os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            for purpose in ("kick", "call", "err", "log")
            for index in range(2 * QUEUES)
        }
        self._files = {
            name: _file(name, size)
            for name, size in (("log 0", LOG_BYTES), ("log 1", 2 * LOG_BYTES), ("area 0", 1 << 16))
        }
        self._files["area 1"] = _file("area 1", 1 << 17)
        self._pipe: tuple[int, int] | None = None
        self._channel: socket.socket | None = None
        self._acknowledge = True
        self.transcript: list[object] = []
        #: Hand-overs within all messages: after how many bytes, and whether the new process dies.
        self.cuts: Iterator[tuple[int, bool]] | None = None
        self._sector = 0

    # Servers

    async def begin(self) -> None:
        """Start serving, and connect."""
        self._new_server()
        await self._server.start(movable=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._socket, self._address.path)
        await self.say(Request.SET_PROTOCOL_FEATURES, U64.pack(self.protocol))
        await self.say(Request.SET_MEM_TABLE, *_table(self.memory.describe()))

    def _new_server(self) -> None:
        self.device = make_backend(self.node, self._iothreads, num_queues=QUEUES)
        self._server = VhostUserServer(self._address, self.device, "e")

    async def _go_on(self, carried: Carried) -> None:
        self._new_server()
        backend = self.device._backend
        backend.add_drain_listener(self.device)
        backend.quiesce()
        await self._server.start(carried, movable=True)

    async def _suspend(self) -> Carried:
        carried = await self._server.suspend()
        await self.device._backend.detach()
        return carried

    async def move(self, *, fails: bool, silent: bool = False) -> None:
        """Hand over; `fails`: the new process then dies, so that the first one resumes.

        `silent`: the front-end sends nothing meanwhile.
        """
        carried = await self._suspend()
        if fails:
            await self._go_on(_received(carried))
            if not silent:
                self._send(Request.GET_STATUS)  # the process that continues has to reply
            await turns(10)
            await self._server.stop()
            await self.device._backend.detach()
        await self._go_on(carried)
        self.device._backend.resume()
        self._server.resume()
        if fails and not silent:
            await self._reply(Request.GET_STATUS)

    async def end(self) -> None:
        """Stop everything, and disconnect."""
        if self._channel is not None:
            self._channel.close()
        self._socket.close()
        await self._server.stop()
        self._iothreads.close()
        for fd in (*self._events.values(), *self._files.values(), *(self._pipe or ())):
            os.close(fd)
        for ring in self.rings:
            ring.close()
        self.memory.close()

    # Messages

    async def say(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message, and record its reply; every message gets one."""
        if self.cuts is None:
            self._send(request, payload, fds)
        else:
            place, fails = next(self.cuts)
            await self._send_in_parts(request, payload, fds, place, fails=fails)
        reply = await self._reply(request)
        if request != Request.VRING_KICK or any(reply):  # their number is undefined
            self.transcript.append((request.name, reply))
        return reply

    async def _send_in_parts(
        self, request: Request, payload: bytes, fds: Sequence[int], place: int, *, fails: bool
    ) -> None:
        """Send a message, with a hand-over after some of its bytes."""
        data, rights = _frame(request, payload, fds)
        place = min(place, len(data) - 1)
        assert self._socket.sendmsg([data[:place]], rights) == place
        await turns(10)
        await self.move(fails=fails, silent=True)
        assert self._socket.send(data[place:]) == len(data) - place

    def _send(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        data, rights = _frame(request, payload, fds)
        assert self._socket.sendmsg([data], rights) == len(data)

    async def _reply(self, request: Request) -> bytes:
        number, flags, size = HEADER.unpack(await self._read(HEADER.size))
        assert (number, flags) == (request, VERSION | FLAG_REPLY)
        return await self._read(size)

    async def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await asyncio.get_running_loop().sock_recv(self._socket, size - len(data))
            assert part, "disconnected"
            data += part
        return data

    async def features(self, names: Sequence[str]) -> None:
        features = self._features
        for name in names:
            features |= CHOICES[name]
        await self.say(Request.SET_FEATURES, U64.pack(features & self._offered))

    @property
    def _offered(self) -> int:
        logging = 0 if self.device.dirty_logging is None else 1 << 26
        return self.device.device_features | F_PROTOCOL_FEATURES | logging

    async def table(self, number: int) -> None:
        await self.say(Request.SET_MEM_TABLE, *_table(self.memory.describe()[: 1 + number]))

    async def region(self, *, add: bool) -> None:
        region = self.memory.describe()[1]
        fields = (0, region.guest_addr, region.size, region.user_addr, region.mmap_offset)
        request = Request.ADD_MEM_REG if add else Request.REM_MEM_REG
        await self.say(request, SINGLE_REGION.pack(*fields), [region.fd] if add else [])

    async def number(self, index: int, size: int) -> None:
        await self.say(Request.SET_VRING_NUM, VRING_STATE.pack(index, size))

    async def addresses(self, index: int, *, logged: bool, wrong: bool = False) -> None:
        """Send the addresses of a ring; `wrong`: outside of memory, so that it doesn't start."""
        ring = self.rings[index]
        places = (ring.desc_addr, ring.used_addr, ring.avail_addr)
        users = [self.memory.user_addr(place) + (1 << 40) * wrong for place in places]
        payload = VRING_ADDR.pack(index, logged, *users, ring.used_addr)
        await self.say(Request.SET_VRING_ADDR, payload)

    async def base(self, index: int) -> None:
        await self.say(Request.SET_VRING_BASE, VRING_STATE.pack(index, self.rings[index].base))

    async def descriptor(self, request: Request, purpose: str, index: int, which: int) -> None:
        """Send one of two eventfds, none, or another kind of descriptor."""
        if which == 2:
            await self.say(request, U64.pack(index | VRING_NOFD))
            return
        event = self._events[purpose, index + QUEUES * (which % 2)]
        fd = self._files["log 0"] if which == 3 else event
        await self.say(request, U64.pack(index), [fd])

    async def make_sense(self, index: int) -> None:
        """Send the base of a ring that is about to start, unless the back-end has it."""
        vring, ring = self.sessions[-1]._vrings[index], self.rings[index]
        if ring.in_flight and vring.size not in (0, ring.size):
            await self.number(index, ring.size)
        known = vring.started and not vring.base_set_since_start
        if not known and vring.base != ring.base:
            await self.base(index)

    async def kick(self, index: int, which: int) -> None:
        await self.make_sense(index)
        await self.descriptor(Request.SET_VRING_KICK, "kick", index, which)

    async def kick_in_band(self, index: int) -> None:
        if self.inband:
            await self.make_sense(index)
            await self.say(Request.VRING_KICK, VRING_STATE.pack(index, 0))

    async def enable(self, index: int, value: int) -> None:
        await self.say(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, value))

    async def stop(self, index: int) -> None:
        await self.say(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))

    async def config(self, value: int) -> None:
        await self.say(Request.SET_CONFIG, CONFIG_HEADER.pack(32, 1, 0) + bytes([value]))

    async def read_config(self) -> None:
        await self.say(Request.GET_CONFIG, CONFIG_HEADER.pack(0, 60, 0) + bytes(60))

    async def status(self, value: int) -> None:
        await self.say(Request.SET_STATUS, U64.pack(value))

    async def log_base(self, which: int) -> None:
        if load() is not None:
            size = LOG_BYTES << which
            await self.say(Request.SET_LOG_BASE, LOG.pack(size, 0), [self._files[f"log {which}"]])

    async def log_event(self, which: int) -> None:
        if load() is not None:
            await self.say(Request.SET_LOG_FD, b"", [self._events["log", which]])

    async def area(self, which: int) -> None:
        payload = INFLIGHT.pack(1 << (16 + which), 0, QUEUES, 16)
        await self.say(Request.SET_INFLIGHT_FD, payload, [self._files[f"area {which}"]])

    async def channel(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            await self.say(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
        if self._channel is not None:
            self._channel.close()
        self._channel = ours

    async def acknowledge(self, *, now: bool) -> None:
        """Acknowledge the back-end's messages from now on, or not."""
        self._acknowledge = now

    async def state_transfer(self, direction: int) -> None:
        """Begin a transfer of the device's state through a pipe."""
        if self._pipe is not None:
            for fd in self._pipe:
                os.close(fd)
        self._pipe = os.pipe()
        fd = self._pipe[1 - direction]
        await self.say(Request.SET_DEVICE_STATE_FD, DEVICE_STATE.pack(direction, 0), [fd])

    async def state_ends(self, content: bytes) -> None:
        """Send a state, and let the back-end check it."""
        if self._pipe is not None:
            os.write(self._pipe[1], content)
        await self.say(Request.CHECK_DEVICE_STATE)

    def pump(self) -> None:
        """Acknowledge the messages on the channel."""
        if self._channel is None or not self._acknowledge:
            return
        with suppress(BlockingIOError, ConnectionError):
            while data := self._channel.recv(HEADER.size):
                request, flags, size = HEADER.unpack(data)
                if size:
                    self._channel.recv(size)
                if flags & FLAG_NEED_REPLY:
                    answer = HEADER.pack(request, VERSION | FLAG_REPLY, U64.size) + U64.pack(0)
                    self._channel.send(answer)

    # Requests

    def served(self, index: int) -> bool:
        """Return whether the device takes a ring's requests now, and would notify us of it."""
        queue, device = self.device.queues.running.get(index), self.device
        if queue is None or index not in device.queues.enabled or queue.broken:
            return False
        return device.queues.config(index).size == self.rings[index].size

    async def write(self, index: int) -> None:
        """Write to a new place; wait for completion if the ring is served."""
        ring, vring = self.rings[index], self.sessions[-1]._vrings[index]
        sizes = {vring.size, vring.running.size if vring.running else 0} - {0, ring.size}
        if ring.in_flight or ring.free < 3 or sizes:
            return
        self._sector += 1
        place = self.memory.allocate(1024, region=0)
        self.memory.write(place, header(RequestType.OUT, self._sector))
        self.memory.write(place + 16, pattern(512, self._sector))
        ring.add([Segment(place, 16), Segment(place + 16, 512), Segment(place + 528, 1, True)])
        ring.publish()
        await self.finish(index)

    async def settle(self) -> None:
        """Wait until all pending work is done."""
        for index in range(QUEUES):
            await self.finish(index)

    async def finish(self, index: int) -> None:
        """Kick in all ways; wait for requests in flight, if the ring is served."""
        ring = self.rings[index]
        if not self.served(index) or not ring.in_flight:
            return
        for which in (index, index + QUEUES):
            os.eventfd_write(self._events["kick", which], 1)
        await self.kick_in_band(index)
        async with asyncio.timeout(20):
            while ring.in_flight and self.served(index):
                self.pump()
                await asyncio.sleep(0)
                self.transcript += [("used", used.length) for used in ring.poll()]

    # State

    def state(self) -> dict[str, object]:
        """Return a description of session and device that can be compared."""
        session, device = self.sessions[-1], self.device
        logging = device.dirty_logging
        area = device._records._area
        shared = self._shared
        return {
            "features": (session._features, device.queues.features),
            "protocol": session._protocol_features,
            "status": session._status,
            "loading": session._device_state.loading,
            "vrings": [self._vring(session, index) for index in range(QUEUES)],
            "enabled": sorted(device.queues.enabled),
            "memory": [
                (r.guest_addr, r.size, r.user_addr, shared(r.mapping.address))
                for r in device.queues.memory.regions
            ],
            "cache": (device.queues.chosen_write_cache, device._backend.enable_write_cache),
            "shown": device._shown_config is not None,
            "area": area and shared(area._mapping.address),
            "channel": session._channel is not None and session._channel._socket is not None,
            "logging": logging
            and (
                logging._enabled,
                logging._log and (shared(logging._log.address), logging._log.size),
                logging._used,
                logging._event_fd and self._name_of(logging._event_fd),
            ),
        }

    def _vring(self, session: Session, index: int) -> dict[str, object]:
        vring, device = session._vrings[index], self.device
        running = vring.running
        queue: Any = device.queues.running.get(index)
        wires = device.queues._running[index].wires if running else None
        pending = vring.base_set_since_start or running is None
        return {
            "said": (vring.size, vring.addresses, vring.log_addr, vring.enabled),
            "base": vring.base if pending else "where it was",
            "running": running and replace(running, next_avail=0, log_addr=None),
            "logged at": device.dirty_logging and device.dirty_logging._used.get(index),
            "in-band": running is not None and vring.inband,
            "call": self._notice(device._call_fds.get(index), vring.call_set, running),
            "err": self._notice(device._err_fds.get(index), vring.err_set, running),
            "kick": running and self._name_of(queue._kick_fd),
            "record": wires and wires.record and self._shared(wires.record.address),
        }

    def _notice(self, fd: int | None, is_set: bool, running: object) -> object:
        """Describe how the front-end is notified; in-band, the descriptor is made at the start."""
        name = self._name_of(fd)
        made_up = name == "in-band" or not is_set
        return None if running is None and made_up else (name, is_set)

    def _shared(self, address: int) -> str:
        """Return which of our files is mapped at an address."""
        files = dict(self._files)
        for number, region in enumerate(self.memory.describe()):
            files[f"region {number}"] = region.fd
        names = {os.fstat(fd).st_ino: name for name, fd in files.items()}
        return names[_inode(address)]

    def _name_of(self, fd: int | None) -> object:
        """Return which of our eventfds a descriptor is."""
        if fd is None:
            return None
        ours = {_event_id(event): purpose for purpose, event in self._events.items()}
        return ours.get(_event_id(fd), "in-band")


@asynccontextmanager
async def script(directory: Path, **how: bool) -> AsyncIterator[Script]:
    """Serve a front-end inside the block."""

    def remember(*arguments: Any, **members: Any) -> Session:
        Script.sessions.append(Session(*arguments, **members))
        return Script.sessions[-1]

    made = Script(directory, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "Session", remember)
        try:
            await made.begin()
            yield made
        finally:
            await made.end()
            Script.sessions.clear()


def _received(carried: Carried) -> Carried:
    """Return what another process would have received."""
    connection = carried.connection and carried.connection.dup()
    said = [
        Said(item.request, item.payload, FdList([os.dup(fd) for fd in item.fds]))
        for item in carried.said
    ]
    received, unsent = (
        Part(part.data, FdList([os.dup(fd) for fd in part.fds]))
        for part in (carried.received, carried.unsent)
    )
    listener = Listener(carried.listener.socket.dup())
    return Carried(listener, connection, said, received, unsent)


def _frame(
    request: Request, payload: bytes, fds: Sequence[int]
) -> tuple[bytes, list[tuple[int, int, array.array[int]]]]:
    """Return a message that wants a reply: its bytes, and its descriptors for `sendmsg`."""
    flags = VERSION if request in _OWN_REPLY else VERSION | FLAG_NEED_REPLY
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return HEADER.pack(request, flags, len(payload)) + payload, rights


def _table(regions: Sequence[MemoryRegion]) -> tuple[bytes, list[int]]:
    rows = b"".join(region.pack() for region in regions)
    return MEMORY_HEADER.pack(len(regions), 0) + rows, [region.fd for region in regions]


def _file(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.truncate(fd, size)
    return fd


def _event_id(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(text.split("eventfd-id:")[1].split()[0])


def _inode(address: int) -> int:
    """Return the inode of the file that is mapped at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, _, _, _, inode, *_ = line.split()
        first, end = (int(place, 16) for place in places.split("-"))
        if first <= address < end:
            return int(inode)
    raise AssertionError(f"nothing is mapped at {address:#x}")
