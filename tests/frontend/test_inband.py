# SPDX-License-Identifier: Apache-2.0
"""In-band notifications: a front-end without eventfds and a daemon, in both lanes."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import wait_until
from tests.frontend.blk import BlkDriver
from tests.frontend.connection import PROTOCOL_FEATURES, FrontendError
from tests.frontend.inband import INBAND, REPLY, InbandConnection, read_in_band, wait_in_band
from tests.frontend.layout.vhost_user import (
    HEADER,
    U64,
    VRING_STATE,
    BackendRequest,
    ProtocolFeature,
    Request,
)
from tests.frontend.layout.virtio_blk import RequestType
from tests.frontend.memory import Memory
from tests.hostile.conftest import daemon, scene

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.frontend.scene import Scene

__all__ = ["daemon", "scene"]


class Guest:
    """A driver on such a connection."""

    def __init__(self, scene: Scene) -> None:
        self.memory = Memory()
        self.connection = InbandConnection.connect(scene.daemon.socket_path)
        self.driver = BlkDriver(self.connection, self.memory, num_queues=2)

    def read(self, queue: int = 0) -> None:
        """Read data; only messages wake the front-end."""
        assert read_in_band(self.driver, self.connection, queue) == bytes(4096)

    def close(self) -> None:
        self.connection.channel.close()
        self.driver.close()
        self.memory.close()


@pytest.fixture
def guest(scene: Scene) -> Iterator[Guest]:
    guest = Guest(scene)
    try:
        yield guest
    finally:
        guest.close()


def test_requests_are_kicked_and_completed_by_messages(guest: Guest) -> None:
    for number in range(50):
        guest.read(number % 2)
    # Stopped, and started again by the next message.
    ring = guest.driver.rings[0]
    base = guest.connection.get_vring_base(0)
    ring.attach(guest.connection, 0, base=base)
    for _ in range(5):
        guest.read(0)


def test_a_front_end_that_does_not_answer_gets_one_message_a_vring_and_loses_none(
    guest: Guest,
) -> None:
    driver, connection = guest.driver, guest.connection
    for _ in range(20):
        request = driver.submit(RequestType.IN, data_in=[512])
        driver.rings[0].publish()
        driver.rings[0].arm()
        connection.kick()
        wait_until(lambda: bool(driver.rings[0].used_idx[0] == driver.rings[0].avail_idx[0]))
        assert driver.poll()[0][0] is request
    connection.sync()
    assert connection.receive() == (BackendRequest.VRING_CALL, 0)
    assert not select.select([connection.channel], [], [], 0)[0]
    connection.acknowledge(BackendRequest.VRING_CALL)
    assert connection.receive() == (BackendRequest.VRING_CALL, 0)  # of all the others
    connection.acknowledge(BackendRequest.VRING_CALL)
    guest.read()


def test_a_broken_ring_is_told_by_a_message(guest: Guest) -> None:
    guest.read()
    guest.driver.rings[0].make_available(999)
    guest.driver.rings[0].publish()
    guest.connection.kick()
    while (notice := guest.connection.receive())[0] != BackendRequest.VRING_ERR:
        guest.connection.acknowledge(notice[0])
    assert notice == (BackendRequest.VRING_ERR, 0)
    guest.connection.acknowledge(notice[0])
    guest.read(1)


def test_answers_to_nothing_cost_the_channel_alone(guest: Guest) -> None:
    guest.read()
    guest.connection.channel.send(HEADER.pack(BackendRequest.VRING_ERR, REPLY, 8) + bytes(8))
    while guest.connection.channel.recv(4096):
        pass
    guest.connection.channel.close()
    guest.connection.channel = guest.connection.open_channel()
    guest.read()


def test_what_got_no_answer_is_sent_again_on_another_channel(guest: Guest) -> None:
    connection, driver = guest.connection, guest.driver
    driver.submit(RequestType.IN, data_in=[512])
    driver.rings[0].publish()
    driver.rings[0].arm()
    connection.kick()
    assert connection.receive() == (BackendRequest.VRING_CALL, 0)
    connection.channel.close()
    connection.channel = connection.open_channel()
    assert connection.receive() == (BackendRequest.VRING_CALL, 0)
    connection.acknowledge(BackendRequest.VRING_CALL)
    wait_in_band(driver, connection)
    guest.read()


def test_features_that_it_needs(scene: Scene) -> None:
    for missing in (ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK):
        with scene.connect() as connection:
            chosen = (PROTOCOL_FEATURES | INBAND) & ~missing
            connection.send(Request.SET_PROTOCOL_FEATURES, U64.pack(chosen))
            connection.wait_closed()


def test_a_kick_message_that_was_not_negotiated(scene: Scene) -> None:
    with scene.driver() as driver:
        for payload in (VRING_STATE.pack(0, 0), VRING_STATE.pack(0, 1), VRING_STATE.pack(9, 0)):
            with pytest.raises(FrontendError):
                driver.connection.tell(Request.VRING_KICK, payload)
        driver.read(0, 512)
