# SPDX-License-Identifier: Apache-2.0
"""The state of an export that a hand-over passes on: sockets, and messages to replay."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

from vhostblk.exports.base import Carried
from vhostblk.net.listener import Listener
from vhostblk.vhost_user.codec import FdList
from vhostblk.vhost_user.restate import Said
from vhostblk.vhost_user.server import Carried as ServerCarried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhostblk.exports.base import Descriptors


class _Said(msgspec.Struct, kw_only=True, frozen=True):
    """A message that the new session gets; `fds` are the places of its descriptors."""

    request: int
    payload: bytes
    fds: list[int]


class _State(msgspec.Struct, kw_only=True, frozen=True):
    """The places of the sockets' descriptors, the listener's file, and the messages."""

    listening: int
    path: str | None
    connection: int | None
    said: list[_Said]


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
        connection = session.connection
        said = [
            _Said(request=said.request, payload=said.payload, fds=[fds.add(fd) for fd in said.fds])
            for said in session.said
        ]
        state = _State(
            listening=fds.add(session.listener.socket.fileno()),
            path=session.listener.path,
            connection=None if connection is None else fds.add(connection.fileno()),
            said=said,
        )
        return msgspec.Raw(msgspec.json.encode(state))

    def close(self) -> None:
        """Close the sockets, and the descriptors of messages."""
        self.session.close()


def decode(raw: msgspec.Raw, fds: Descriptors) -> tuple[CarriedSession, list[str | None]]:
    """Undo `CarriedSession.encode`; raises VhostblkError, or msgspec.DecodeError."""
    state = msgspec.json.decode(raw, type=_State)
    listener = Listener(socket.socket(fileno=fds.take(state.listening)))
    connection = None
    if state.connection is not None:
        connection = socket.socket(fileno=fds.take(state.connection))
    said = [
        Said(one.request, one.payload, FdList([fds.take(place) for place in one.fds]))
        for one in state.said
    ]
    return CarriedSession(ServerCarried(listener, connection, said)), [state.path]
