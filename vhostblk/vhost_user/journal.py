# SPDX-License-Identifier: Apache-2.0
"""Messages that bring a new session to the state of another one, in another process.

The new session checks these messages like those of a front-end. Because they are ordinary
vhost-user messages, different versions of vhostblk understand each other. Most messages are created
from the session's state (`restate.py`). Only messages with descriptors must be kept: a `Journal`
keeps the last message of each kind, with duplicates of the descriptors, while it is effective.
Without a journal, memory files are closed once they are mapped. So a journal is created only if the
session may have to move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vhostblk.vhost_user import restate
from vhostblk.vhost_user.codec import FdList
from vhostblk.vhost_user.layout import (
    CONFIG_HEADER,
    MEMORY_HEADER,
    MEMORY_REGION,
    SINGLE_REGION,
    U64,
    VRING_INDEX_MASK,
    Request,
)
from vhostblk.vhost_user.restate import Said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.vhost_user.codec import Message
    from vhostblk.vhost_user.restate import SessionState
    from vhostblk.vhost_user.vring import Vring
    from vhostblk.virtqueue.config import VringConfig


_KEPT_OF_VRING = frozenset({Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR})
_KEPT = _KEPT_OF_VRING | {
    Request.SET_LOG_BASE,
    Request.SET_LOG_FD,
    Request.SET_BACKEND_REQ_FD,
    Request.SET_DEVICE_STATE_FD,
    Request.SET_INFLIGHT_FD,
}
_MEMORY = frozenset({Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.REM_MEM_REG})
_POSTCOPY = frozenset({Request.POSTCOPY_ADVISE, Request.POSTCOPY_LISTEN, Request.POSTCOPY_END})

#: Messages that start or stop one vring; the payload begins with its index.
_OF_VRING = _KEPT_OF_VRING | {Request.VRING_KICK, Request.GET_VRING_BASE}
#: Messages that may start or stop any vring.
_OF_ALL_VRINGS = frozenset(
    {Request.SET_FEATURES, Request.SET_STATUS, Request.RESET_DEVICE, Request.POSTCOPY_END}
)

#: Messages to send after the memory messages, because logs must cover memory, and before any
#: vring runs.
_BEFORE_VRINGS = (
    Request.SET_LOG_BASE,
    Request.SET_LOG_FD,
    Request.SET_BACKEND_REQ_FD,
    Request.SET_DEVICE_STATE_FD,
)


class Journal:
    """The effective messages with descriptors of one session."""

    def __init__(self) -> None:
        #: By request, and vring (or 0).
        self._kept: dict[tuple[int, int], Said] = {}
        #: By guest address, size and user address.
        self._regions: dict[tuple[int, int, int], Said] = {}
        #: The configuration of each running vring, and the area in which it records requests in
        #: flight. The front-end may have set another area since.
        self._running: dict[int, tuple[VringConfig, Said | None]] = {}
        #: The configuration space as the front-end last read it.
        self._shown: Said | None = None
        #: The progress of an incoming post-copy migration; None if there is none.
        self._postcopy: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors."""
        areas = (area for _, area in self._running.values() if area is not None)
        for said in (*self._kept.values(), *self._regions.values(), *areas):
            said.fds.close()
        self._clear()

    def _clear(self) -> None:
        self._kept.clear()
        self._regions.clear()
        self._running.clear()
        self._shown = None
        self._postcopy = None

    @property
    def movable(self) -> bool:
        """Whether the session can move. It can't while this process has guest memory registered."""
        return self._postcopy is None

    # Messages of the front-end

    def copy(self, message: Message) -> Said:
        """Copy a message for `note`, before it is handled; raises OSError."""
        wanted = message.request in _KEPT or message.request in _MEMORY
        return Said(
            message.request, message.payload, restate.duplicates(message.fds if wanted else ())
        )

    def note(self, said: Said, reply: bytes | None, state: SessionState) -> None:
        """Record a message, whose descriptors the journal owns, and the session's state after it.

        `reply` is the payload of the reply; None: the message has failed.
        """
        if reply is None:
            said.fds.close()
        else:
            self._take_in(said, reply)
        request = said.request
        if request == Request.POSTCOPY_END:
            self._postcopy = None
        if request in _OF_ALL_VRINGS:
            for index in range(len(state.vrings)):
                self._look_at(index, state)
        elif request in _OF_VRING:
            self._look_at(_index_of(said), state)
        if not state.loading:
            self._forget(Request.SET_DEVICE_STATE_FD)

    def _take_in(self, said: Said, reply: bytes) -> None:
        request = said.request
        if request in _KEPT_OF_VRING:
            self._keep(said, _index_of(said))
        elif request in _KEPT:
            self._keep(said)
        elif request in _MEMORY:
            self._change_memory(said)
        elif request in _POSTCOPY:
            self._postcopy = request
        elif request == Request.GET_CONFIG and len(reply) > CONFIG_HEADER.size:
            self._shown = said._replace(payload=reply)
        elif _is_reset(said):
            self._forget(Request.SET_INFLIGHT_FD)
        if request == Request.SET_VRING_KICK and self._postcopy == Request.POSTCOPY_ADVISE:
            self._postcopy = None  # all memory has arrived before

    def _keep(self, said: Said, index: int = 0) -> None:
        self._forget(said.request, index)
        self._kept[said.request, index] = said

    def _forget(self, request: int, index: int = 0) -> None:
        former = self._kept.pop((request, index), None)
        if former is not None:
            self._close_unused(former)

    def _close_unused(self, said: Said) -> None:
        """Close a message's descriptors, unless it names the area of a vring that runs."""
        in_use = (area for _, area in self._running.values())
        if said is not self._area and not any(said is area for area in in_use):
            said.fds.close()

    @property
    def _area(self) -> Said | None:
        """The message with the in-flight area that vrings use when they start."""
        return self._kept.get((Request.SET_INFLIGHT_FD, 0))

    def _look_at(self, index: int, state: SessionState) -> None:
        """Remove the messages of a vring that are not effective any more."""
        if index >= len(state.vrings):
            return
        vring = state.vrings[index]
        deferred = self._postcopy == Request.POSTCOPY_LISTEN
        if vring.inband or not (vring.started or deferred):
            self._forget(Request.SET_VRING_KICK, index)
        if not vring.call_set:
            self._forget(Request.SET_VRING_CALL, index)
        if not vring.err_set:
            self._forget(Request.SET_VRING_ERR, index)
        config, area = self._running.get(index, (None, None))
        if vring.running is config:
            return
        if vring.running is None:
            del self._running[index]
        else:
            self._running[index] = (vring.running, self._area)
        if area is not None:
            self._close_unused(area)

    # Memory: always one message for each region, which does not limit the number of regions.

    def _change_memory(self, said: Said) -> None:
        if self._postcopy is not None and len(said.payload) == U64.size:
            return  # a confirmation
        if said.request == Request.SET_MEM_TABLE:
            for former in self._regions.values():
                former.fds.close()
            self._regions.clear()
            regions = MEMORY_REGION.iter_unpack(said.payload[MEMORY_HEADER.size :])
            for region, fd in zip(regions, said.fds.take_all(), strict=True):
                self._add_region(SINGLE_REGION.pack(0, *region), FdList([fd]))
        elif said.request == Request.ADD_MEM_REG:
            self._add_region(said.payload, said.fds)
        else:
            _, guest, size, user, _ = SINGLE_REGION.unpack(said.payload)
            said.fds.close()
            if former_region := self._regions.pop((guest, size, user), None):
                former_region.fds.close()

    def _add_region(self, payload: bytes, fds: FdList) -> None:
        _, guest, size, user, _ = SINGLE_REGION.unpack(payload)
        self._regions[guest, size, user] = Said(Request.ADD_MEM_REG, payload, fds)

    # Moving

    def hand_out(self, state: SessionState) -> list[Said]:
        """Return the messages for a new session, in order, and empty the journal.

        The vrings have stopped. `running` has the base of each vring that ran.
        """
        said = [*self._general(state), *self._vrings(state)]
        if self._shown is not None:
            said.append(self._shown)
        handed_out = {id(item) for item in said}
        for former in self._kept.values():
            if id(former) not in handed_out:
                former.fds.close()
        self._clear()
        return said

    def _general(self, state: SessionState) -> Iterator[Said]:
        yield from restate.features(state)
        yield from self._regions.values()
        for request in _BEFORE_VRINGS:
            if (request, 0) in self._kept:
                yield self._kept[request, 0]
        yield from restate.status(state)

    def _vrings(self, state: SessionState) -> Iterator[Said]:
        """Yield the messages of all vrings, each after the message with its in-flight area."""
        present = self._area
        areas = [
            self._running[index][1] if index in self._running else present
            for index in range(len(state.vrings))
        ]

        # No message removes an area, so vrings without an area are first. The current area is last,
        # because it must stay effective.
        def turn(index: int) -> tuple[bool, bool, int]:
            area = areas[index]
            return area is present, area is not None, id(area)

        told: Said | None = None
        for index in sorted(range(len(areas)), key=turn):
            area = areas[index]
            if area is not None and area is not told:
                told = area
                yield area
            yield from self._vring(index, state.vrings[index])
        if present is not None and present is not told:
            yield present

    def _vring(self, index: int, vring: Vring) -> Iterator[Said]:
        yield restate.enabled(index, vring)
        for request in (Request.SET_VRING_ERR, Request.SET_VRING_CALL):
            if (request, index) in self._kept:
                yield self._kept[request, index]
        yield from restate.vring(index, vring, self._kept.get((Request.SET_VRING_KICK, index)))


def _index_of(said: Said) -> int:
    return int.from_bytes(said.payload[:4], "little") & VRING_INDEX_MASK


def _is_reset(said: Said) -> bool:
    return said.request == Request.RESET_DEVICE or (
        said.request == Request.SET_STATUS and said.payload == U64.pack(0)
    )
