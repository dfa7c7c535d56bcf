# SPDX-License-Identifier: Apache-2.0
"""What a front-end has said that still holds, as messages that say it again.

A session that moves to another process is told there in the protocol's own words: what a journal
has kept is replayed to a fresh session, which checks it as it would check a front-end's. So nothing
of the session's inner state has to be written down, and two versions that both speak vhost-user
understand each other.

A journal is told of every message that succeeded, keeps the last of each kind (of each vring), and
forgets what a later one has taken back. It has duplicates of the descriptors: memory files among
them, which are otherwise closed once they are mapped. So journals are kept only where sessions may
have to move.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Self

from vhostblk.vhost_user.codec import FdList, Message
from vhostblk.vhost_user.layout import (
    MEMORY_HEADER,
    MEMORY_REGION,
    SINGLE_REGION,
    U64,
    VERSION,
    VRING_INDEX_MASK,
    VRING_STATE,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_KEPT = frozenset(
    {
        Request.SET_PROTOCOL_FEATURES,
        Request.SET_CONFIG,
        Request.SET_FEATURES,
        Request.SET_LOG_BASE,
        Request.SET_LOG_FD,
        Request.SET_BACKEND_REQ_FD,
        Request.SET_INFLIGHT_FD,
        Request.SET_STATUS,
        Request.SET_VRING_NUM,
        Request.SET_VRING_ADDR,
        Request.SET_VRING_BASE,
        Request.SET_VRING_ERR,
        Request.SET_VRING_CALL,
        Request.SET_VRING_ENABLE,
        Request.SET_VRING_KICK,
    }
)
#: Those of `_KEPT` that are for one vring, which the first bytes name.
_OF_VRING = frozenset(request for request in _KEPT if request.name.startswith("SET_VRING"))

#: The order in which they are said again; memory comes before logs. Features come after the
#: configuration, which some of them would take back, and a vring's kick starts it.
_BEFORE_MEMORY = (Request.SET_PROTOCOL_FEATURES, Request.SET_CONFIG, Request.SET_FEATURES)
_AFTER_MEMORY = (
    Request.SET_LOG_BASE,
    Request.SET_LOG_FD,
    Request.SET_BACKEND_REQ_FD,
    Request.SET_INFLIGHT_FD,
    Request.SET_STATUS,
)
_VRING_ORDER = (
    Request.SET_VRING_NUM,
    Request.SET_VRING_ADDR,
    Request.SET_VRING_BASE,
    Request.SET_VRING_ERR,
    Request.SET_VRING_CALL,
    Request.SET_VRING_KICK,
    Request.SET_VRING_ENABLE,
)


class Said(NamedTuple):
    """One thing that holds: what a message says, without the request for a reply."""

    request: int
    payload: bytes
    fds: FdList


class Journal:
    """The messages of one session that hold."""

    def __init__(self) -> None:
        #: By request, and vring (or 0).
        self._kept: dict[tuple[int, int], Said] = {}
        #: By guest address, size and user address.
        self._regions: dict[tuple[int, int, int], Said] = {}
        #: How far a post-copy migration to here has got; None: there is none.
        self._postcopy: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors."""
        for said in (*self._kept.values(), *self._regions.values()):
            said.fds.close()
        self._kept.clear()
        self._regions.clear()
        self._postcopy = None

    def copy(self, message: Message) -> Said:
        """Copy a message that is about to be carried out, for `note` or to be closed."""
        wanted = message.request in _KEPT or message.request in _MEMORY
        fds = FdList()
        try:
            for fd in message.fds if wanted else ():
                fds.extend([os.dup(fd)])
        except OSError:
            fds.close()
            raise
        return Said(message.request, message.payload, fds)

    def note(self, said: Said, reply: bytes = b"") -> None:
        """Take in a message that has succeeded; `reply` is the payload of the answer to it."""
        request, payload, _ = said
        if request in _KEPT:
            self._keep(said)
        elif request in _MEMORY:
            self._change_memory(said)
        elif request in _POSTCOPY:
            self._postcopy = None if request == Request.POSTCOPY_END else request
        elif request == Request.GET_VRING_BASE:
            index, _ = VRING_STATE.unpack(payload)
            self._stopped(index, reply)
        elif request == Request.RESET_OWNER:
            for said in list(self._kept.values()):
                if said.request == Request.SET_VRING_ENABLE:
                    index, _ = VRING_STATE.unpack(said.payload)
                    self._keep(said._replace(payload=VRING_STATE.pack(index, 0)))
        elif request == Request.RESET_DEVICE:
            self._reset()

    def _keep(self, said: Said) -> None:
        if said.request == Request.SET_STATUS and said.payload == U64.pack(0):
            self._reset()
            return
        if said.request == Request.SET_VRING_KICK and self._postcopy == Request.POSTCOPY_ADVISE:
            self._postcopy = None  # all memory had come before that
        index = 0
        if said.request in _OF_VRING:
            index = int.from_bytes(said.payload[:4], "little") & VRING_INDEX_MASK
        elif said.request == Request.SET_CONFIG:
            index = int.from_bytes(said.payload[:4], "little")
        self._forget(said.request, index)
        self._kept[said.request, index] = said

    def _forget(self, request: int, index: int) -> None:
        former = self._kept.pop((request, index), None)
        if former is not None:
            former.fds.close()

    def _stopped(self, index: int, state: bytes) -> None:
        """A vring has stopped: it is to go on from `state` when it is started again."""
        self._forget(Request.SET_VRING_KICK, index)
        self._forget(Request.SET_VRING_CALL, index)
        self.set_base(state)

    def _reset(self) -> None:
        """Forget what the driver has said; memory, protocol features and the channel stay."""
        stays = (Request.SET_PROTOCOL_FEATURES, Request.SET_BACKEND_REQ_FD)
        for key in [key for key in self._kept if key[0] not in stays]:
            self._forget(*key)

    # Memory: always told region by region, which has no limit of its own on their number.

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
            former_region = self._regions.pop((guest, size, user), None)
            if former_region is not None:
                former_region.fds.close()

    def _add_region(self, payload: bytes, fds: FdList) -> None:
        _, guest, size, user, _ = SINGLE_REGION.unpack(payload)
        if (former := self._regions.get((guest, size, user))) is not None:
            former.fds.close()
        self._regions[guest, size, user] = Said(Request.ADD_MEM_REG, payload, fds)

    # Moving.

    @property
    def movable(self) -> bool:
        """Tell whether the session can move: not while guest memory is registered by this one."""
        return self._postcopy is None

    @property
    def running(self) -> list[int]:
        """The vrings that have been started."""
        return [index for request, index in self._kept if request == Request.SET_VRING_KICK]

    def set_base(self, state: bytes) -> None:
        """Have a vring go on from where it has stopped; `state` is GET_VRING_BASE's answer."""
        self._keep(Said(Request.SET_VRING_BASE, state, FdList()))

    def said(self) -> list[Said]:
        """List what holds, in the order in which it has to be said; descriptors stay here."""
        kept = self._kept
        indices = sorted({index for request, index in kept if request in _OF_VRING})
        others = sorted(key for key in kept if key[0] not in _OF_VRING)
        return [
            *(kept[key] for request in _BEFORE_MEMORY for key in others if key[0] == request),
            *self._regions.values(),
            *(kept[key] for request in _AFTER_MEMORY for key in others if key[0] == request),
            *(
                kept[request, index]
                for index in indices
                for request in _VRING_ORDER
                if (request, index) in kept
            ),
        ]

    @classmethod
    def of(cls, said: Iterable[Said]) -> Journal:
        """Make a journal that takes over what another process has sent; all of it is hostile."""
        journal = cls()
        for item in said:
            journal.note(item)
        return journal


_POSTCOPY = frozenset({Request.POSTCOPY_ADVISE, Request.POSTCOPY_LISTEN, Request.POSTCOPY_END})
_MEMORY = frozenset({Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.REM_MEM_REG})


def as_message(said: Said) -> Message:
    """Make the message that says it, with duplicates of the descriptors; raises OSError."""
    fds = FdList()
    try:
        for fd in said.fds:
            fds.extend([os.dup(fd)])
    except OSError:
        fds.close()
        raise
    return Message(said.request, VERSION, said.payload, fds)
