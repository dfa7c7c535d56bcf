# SPDX-License-Identifier: Apache-2.0
"""The state of a `test-reader` export for a hand-over: the listening socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

from vhostblk.exports.base import Carried, Descriptors
from vhostblk.net.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Sequence


class _State(msgspec.Struct, kw_only=True, frozen=True):
    """The place of the socket's descriptor, and its file."""

    listening: int
    path: str | None


class CarriedReader(Carried):
    """The state between `suspend` and `start`."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listening socket."""
        return [self.listener]

    def encode(self, fds: Descriptors) -> msgspec.Raw:
        """Return the state as JSON."""
        place = fds.add(self.listener.socket.fileno())
        return msgspec.Raw(msgspec.json.encode(_State(listening=place, path=self.listener.path)))

    def close(self) -> None:
        """Stop listening."""
        self.listener.close()


def decode(raw: msgspec.Raw, fds: Descriptors) -> tuple[CarriedReader, list[str | None]]:
    """Undo `CarriedReader.encode`; raises VhostblkError, or msgspec.DecodeError."""
    state = msgspec.json.decode(raw, type=_State)
    listener = Listener(socket.socket(fileno=fds.take(state.listening)))
    return CarriedReader(listener), [state.path]
