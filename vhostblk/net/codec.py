# SPDX-License-Identifier: Apache-2.0
"""Codecs: what lies between the bytes of a connection and those of its user, without I/O.

TLS is one, WebSocket another. A codec begins with a handshake and then changes data both ways:

    feed(bytes from the peer) -> data for the user        encode(data of the user) -> bytes to send

Codecs also have things to say themselves (handshakes, alerts, answers): they come before the data
that `encode` is given next, so `encode(b"")` returns just these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod


class Codec(ABC):
    """One layer of a connection."""

    #: The handshake is done. Until then `feed` returns nothing.
    established = False
    #: The peer has said that it will send no more.
    ended = False

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Take bytes from the peer, perhaps none, and return what they mean to the user.

        Raises VhostblkError where the peer breaks the rules, unless there is data that came before:
        then `ended` is set and the data returned. What is to be said about it is still to be sent.
        """

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """Return the bytes to send for some data; raises VhostblkError."""

    @abstractmethod
    def finish(self) -> bytes:
        """Return the bytes to send that say good-bye."""

    @abstractmethod
    def close(self) -> None:
        """Give up what the codec holds; it isn't used any more."""


class Stack(Codec):
    """Codecs on top of each other, the one next to the connection first; none: plain bytes."""

    def __init__(self) -> None:
        self.established = True
        self.layers: list[Codec] = []

    def feed(self, data: bytes) -> bytes:
        """Pass bytes up."""
        for layer in self.layers:
            data = layer.feed(data)
            self.ended = self.ended or layer.ended
        return data

    def encode(self, data: bytes) -> bytes:
        """Pass data down."""
        for layer in reversed(self.layers):
            data = layer.encode(data)
        return data

    def finish(self) -> bytes:
        """Say good-bye in all layers, the top one first."""
        data = b""
        for layer in reversed(self.layers):
            data = layer.encode(data) + layer.finish()
        return data

    def close(self) -> None:
        """Give up all layers."""
        for layer in self.layers:
            layer.close()
