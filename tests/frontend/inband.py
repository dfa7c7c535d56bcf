# SPDX-License-Identifier: Apache-2.0
"""A front-end with in-band notifications in both directions, without eventfds."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.frontend.connection import PROTOCOL_FEATURES, Connection
from tests.frontend.layout.vhost_user import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    U64,
    VERSION,
    VRING_STATE,
    BackendRequest,
    ProtocolFeature,
    Request,
)
from tests.frontend.layout.virtio_blk import RequestType, Status

if TYPE_CHECKING:
    from tests.frontend.blk import BlkDriver, BlkRequest

INBAND = ProtocolFeature.INBAND_NOTIFICATIONS
REPLY = VERSION | FLAG_REPLY


class InbandConnection(Connection):
    """A connection that kicks and is called by messages; it opens the channel first."""

    channel: socket.socket

    def negotiate(self, features: int, protocol: ProtocolFeature = PROTOCOL_FEATURES) -> int:
        negotiated = super().negotiate(features, protocol | INBAND)
        self.channel = self.open_channel()
        return negotiated

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """Do nothing: VRING_KICK starts the ring."""

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Do nothing: VRING_CALL is used instead."""

    def kick(self, index: int = 0) -> None:
        self.tell(Request.VRING_KICK, VRING_STATE.pack(index, 0))

    def receive(self) -> tuple[int, int]:
        """Return request and vring of the next notification, without acknowledging it."""
        raw = self.channel.recv(HEADER.size + VRING_STATE.size, socket.MSG_WAITALL)
        request, flags, size = HEADER.unpack_from(raw)
        assert (flags, size) == (VERSION | FLAG_NEED_REPLY, VRING_STATE.size)
        index, reserved = VRING_STATE.unpack_from(raw, HEADER.size)
        assert reserved == 0
        return request, index

    def acknowledge(self, request: int) -> None:
        self.channel.send(HEADER.pack(request, REPLY, U64.size) + U64.pack(0))


def read_in_band(driver: BlkDriver, connection: InbandConnection, queue: int = 0) -> bytes:
    """Read 4096 bytes from the beginning, using in-band notifications only."""
    request = driver.submit(RequestType.IN, data_in=[4096], queue=queue)
    driver.rings[queue].publish()
    driver.rings[queue].arm()
    connection.kick(queue)
    done = wait_in_band(driver, connection, queue)
    assert (done[0][0], request.status) == (request, Status.OK)
    return done[0][1]


def wait_in_band(
    driver: BlkDriver, connection: InbandConnection, queue: int = 0
) -> list[tuple[BlkRequest, bytes]]:
    """Wait for completions, using in-band notifications only; a call may be spurious."""
    done = driver.poll(queue)
    while not done:
        number, index = connection.receive()
        assert number == BackendRequest.VRING_CALL
        connection.acknowledge(number)
        if index == queue:
            done = driver.poll(queue)
    return done
