# SPDX-License-Identifier: Apache-2.0
"""Character devices in the object tree."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from vhostblk.chardev.registry import BACKENDS
from vhostblk.objects.tree import QomObject
from vhostblk.objects.types import QomType, register_type

if TYPE_CHECKING:
    from vhostblk.chardev.base import Chardev

for _kind in (
    QomType("chardev", abstract=True),
    QomType("chardev-fd", "chardev", abstract=True),
    QomType("chardev-file", "chardev-fd"),
    QomType("chardev-null", "chardev"),
    QomType("chardev-pipe", "chardev-fd"),
    QomType("chardev-pty", "chardev"),
    QomType("chardev-ringbuf", "chardev"),
    QomType("chardev-serial", "chardev-fd"),
    QomType(
        "chardev-socket",
        "chardev",
        properties={"connected": "bool", "addr": "SocketAddress"},
    ),
    QomType("chardev-stdio", "chardev-fd"),
    QomType("chardev-udp", "chardev"),
):
    register_type(_kind)

_CHARDEV_TYPES = {kind: f"chardev-{name}" for name, (_, kind) in BACKENDS.items()}


def chardev_object(device: Chardev) -> QomObject:
    """Add a character device to the object tree."""
    kind = _CHARDEV_TYPES[type(device).__name__]
    return QomObject(kind, read=partial(_socket_property, device))


def _socket_property(device: Chardev, name: str) -> object:
    """Return a property of a socket, the only backend with properties of its own."""
    from vhostblk.chardev.socket import SocketChardev

    assert isinstance(device, SocketChardev), name
    if name == "connected":
        return device.is_open
    address = device.address
    kind = type(address).__name__.removesuffix("SocketAddressMembers").lower()
    given = {
        info.encode_name: value
        for info in msgspec.structs.fields(address)
        if (value := getattr(address, info.name)) != info.default
    }
    return {"type": kind, **given}
