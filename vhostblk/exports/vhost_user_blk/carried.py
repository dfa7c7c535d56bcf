# SPDX-License-Identifier: Apache-2.0
"""The state of an export that a hand-over passes on: sockets, and messages to replay."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

from vhostblk.exports.base import Carried
from vhostblk.net.listener import Listener
from vhostblk.vhost_user.carried import Carried as ServerCarried
from vhostblk.vhost_user.codec import FdList, Part
from vhostblk.vhost_user.restate import Said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.exports.base import Descriptors


class _Said(msgspec.Struct, kw_only=True, frozen=True):
    """A message for the new session; `fds` are the places of its descriptors."""

    request: int
    payload: bytes
    fds: list[int]


class _Bytes(msgspec.Struct, kw_only=True, frozen=True):
    """A part of a message; `fds` are the places of its descriptors."""

    data: bytes
    fds: list[int]


class _Interrupted(msgspec.Struct, kw_only=True, frozen=True):
    """A connection with a message that is partly received, or a reply that is partly sent."""

    connection: int
    received: _Bytes
    unsent: _Bytes


class _State(msgspec.Struct, kw_only=True, frozen=True):
    """The places of the sockets' descriptors, the listener's file, and the messages."""

    listening: int
    path: str | None
    #: A connection between two messages.
    connection: int | None
    said: list[_Said]
    #: Earlier versions don't know this, and disconnect the front-end.
    interrupted: _Interrupted | None = None


class CarriedSession(Carried):
    """The `Carried` of a vhost-user server."""

    def __init__(self, session: ServerCarried) -> None:
        self.session = session

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listening socket."""
        return [self.session.listener]

    @property
    def required(self) -> bool:
        """Whether `start` fails if the front-end can't continue."""
        return self.session.required

    @required.setter
    def required(self, required: bool) -> None:
        self.session.required = required

    def encode(self, fds: Descriptors) -> msgspec.Raw:
        """Return the state as JSON."""
        session = self.session
        said = [
            _Said(request=said.request, payload=said.payload, fds=_places(said.fds, fds))
            for said in session.said
        ]
        connection = None
        if session.connection is not None:
            connection = fds.add(session.connection.fileno())
        interrupted = None
        if connection is not None and (session.received.data or session.unsent.data):
            interrupted = _Interrupted(
                connection=connection,
                received=_encode_part(session.received, fds),
                unsent=_encode_part(session.unsent, fds),
            )
        state = _State(
            listening=fds.add(session.listener.socket.fileno()),
            path=session.listener.path,
            connection=None if interrupted else connection,
            said=said,
            interrupted=interrupted,
        )
        return msgspec.Raw(msgspec.json.encode(state))

    def close(self) -> None:
        """Close the sockets, and the descriptors of messages."""
        self.session.close()


def decode(raw: msgspec.Raw, fds: Descriptors) -> tuple[CarriedSession, list[str | None]]:
    """Undo `CarriedSession.encode`; raises VhostblkError, or msgspec.DecodeError."""
    state = msgspec.json.decode(raw, type=_State)
    session = ServerCarried(
        Listener(socket.socket(fileno=fds.take(state.listening))),
        None,
        [Said(one.request, one.payload, _taken(one.fds, fds)) for one in state.said],
    )
    place = state.connection
    if state.interrupted is not None:
        place = state.interrupted.connection
        session.received = _decode_part(state.interrupted.received, fds)
        session.unsent = _decode_part(state.interrupted.unsent, fds)
    if place is not None:
        session.connection = socket.socket(fileno=fds.take(place))
    return CarriedSession(session), [state.path]


def _encode_part(part: Part, fds: Descriptors) -> _Bytes:
    return _Bytes(data=part.data, fds=_places(part.fds, fds))


def _decode_part(part: _Bytes, fds: Descriptors) -> Part:
    return Part(part.data, _taken(part.fds, fds))


def _places(kept: FdList, fds: Descriptors) -> list[int]:
    return [fds.add(fd) for fd in kept]


def _taken(places: list[int], fds: Descriptors) -> FdList:
    return FdList([fds.take(place) for place in places])
