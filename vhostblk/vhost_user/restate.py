# SPDX-License-Identifier: Apache-2.0
"""Messages that bring a new session to the state of another one, in the order of sending."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from vhostblk.vhost_user.codec import FdList, Message
from vhostblk.vhost_user.layout import (
    CONFIG_HEADER,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_F_LOG,
    VRING_STATE,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vhostblk.vhost_user.vring import Vring


class Said(NamedTuple):
    """A message to replay, without the flag that asks for a reply."""

    request: int
    payload: bytes
    fds: FdList


class SessionState(NamedTuple):
    """The state of a session, without everything that has descriptors."""

    protocol_features: int
    features: int
    status: int
    #: What was written to configuration space: offset and content.
    config: Sequence[tuple[int, bytes]]
    #: The state of another device is expected (SET_DEVICE_STATE_FD, to load).
    loading: bool
    vrings: Sequence[Vring]


def features(state: SessionState) -> Iterator[Said]:
    """Yield messages for the negotiated features, then for writes to configuration space.

    In this order, as setting features may reset what was written there.
    """
    yield _plain(Request.SET_PROTOCOL_FEATURES, U64.pack(state.protocol_features))
    if state.features:
        yield _plain(Request.SET_FEATURES, U64.pack(state.features))
    for offset, content in state.config:
        header = CONFIG_HEADER.pack(offset, len(content), 0)
        yield _plain(Request.SET_CONFIG, header + content)


def status(state: SessionState) -> Iterator[Said]:
    """Yield the message that sets the device status; none for 0, which would be a reset."""
    if state.status:
        yield _plain(Request.SET_STATUS, U64.pack(state.status))


def vring(index: int, vring: Vring, kick: Said | None) -> Iterator[Said]:
    """Yield messages that set up a vring, and start it if it ran.

    `kick` is the message that starts it, unless it is kicked in-band. The configuration with which
    it was started comes before that message. Settings made since come after it, as they take effect
    at the next start.
    """
    config = vring.running
    if config is None:
        yield from _described(index, vring.size, vring.addresses, vring.log_addr)
        yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, vring.base))
        return
    addresses = (config.desc_addr, config.avail_addr, config.used_addr)
    yield from _described(index, config.size, addresses, vring.log_addr)
    yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, config.next_avail))
    if vring.inband:
        yield _plain(Request.VRING_KICK, VRING_STATE.pack(index, 0))
    elif kick is not None:
        yield kick
    if (vring.size, vring.addresses) != (config.size, addresses):
        yield from _described(index, vring.size, vring.addresses, vring.log_addr)
    if vring.base_set_since_start:
        yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, vring.base))


def enabled(index: int, vring: Vring) -> Said:
    """Return the message that enables or disables a vring; send it before the vring starts."""
    return _plain(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, vring.enabled))


def _described(
    index: int, size: int, addresses: tuple[int, int, int] | None, log_addr: int | None
) -> Iterator[Said]:
    if size:
        yield _plain(Request.SET_VRING_NUM, VRING_STATE.pack(index, size))
    if addresses is not None:
        desc, avail, used = addresses
        flags = 0 if log_addr is None else VRING_F_LOG
        payload = VRING_ADDR.pack(index, flags, desc, used, avail, log_addr or 0)
        yield _plain(Request.SET_VRING_ADDR, payload)


def _plain(request: Request, payload: bytes) -> Said:
    return Said(request, payload, FdList())


def duplicates(fds: Iterable[int]) -> FdList:
    """Duplicate descriptors, all or none; raises OSError."""
    copies = FdList()
    try:
        for fd in fds:
            copies.extend([os.dup(fd)])
    except OSError:
        copies.close()
        raise
    return copies


def as_message(said: Said) -> Message:
    """Return the message in full, with duplicates of its descriptors; raises OSError."""
    return Message(said.request, VERSION, said.payload, duplicates(said.fds))
