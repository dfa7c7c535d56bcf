# SPDX-License-Identifier: Apache-2.0
"""Commands of character devices (`qapi/char.json`)."""

from __future__ import annotations

import base64
import binascii

from vhostblk.chardev.base import ChardevError
from vhostblk.chardev.registry import BACKENDS
from vhostblk.chardev.ringbuf import RingbufChardev
from vhostblk.daemon import Daemon  # noqa: TC001 (read at run time)
from vhostblk.errors import VhostblkError, reason
from vhostblk.qmp.errors import QmpError
from vhostblk.qmp.registry import command
from vhostblk.schema.chardev import (
    ChardevAdd,
    ChardevBackendInfo,
    ChardevId,
    ChardevInfo,
    ChardevReturn,
    DataFormat,
    RingbufRead,
    RingbufWrite,
)


@command("chardev-add")
async def chardev_add(daemon: Daemon, arguments: ChardevAdd) -> ChardevReturn:
    """Create a character device."""
    return await _add(daemon, arguments)


async def _add(daemon: Daemon, arguments: ChardevAdd) -> ChardevReturn:
    if daemon.chardevs.knows(arguments.id):
        raise QmpError(f"Chardev with id '{arguments.id}' already exists")
    try:
        device = await daemon.chardevs.add(arguments.id, arguments.backend)
    except (OSError, VhostblkError) as error:
        raise QmpError(f"Failed to add chardev '{arguments.id}': {reason(error)}") from error
    return ChardevReturn(**device.answer)


@command("chardev-change")
async def chardev_change(daemon: Daemon, arguments: ChardevAdd) -> ChardevReturn:
    """Replace a character device without a user."""
    await daemon.chardevs.begin_change(arguments.id)
    return await _add(daemon, arguments)


@command("chardev-remove")
async def chardev_remove(daemon: Daemon, arguments: ChardevId) -> None:
    """Remove a character device without a user."""
    await daemon.chardevs.remove(arguments.id)


@command("chardev-send-break")
async def chardev_send_break(daemon: Daemon, arguments: ChardevId) -> None:
    """Send a break condition."""
    daemon.chardevs.find(arguments.id).send_break()


@command("query-chardev")
async def query_chardev(daemon: Daemon) -> list[ChardevInfo]:
    """List the character devices."""
    return [
        ChardevInfo(
            label=device.label,
            filename=device.filename,
            frontend_open=device.frontend is not None,
        )
        for device in daemon.chardevs
    ]


@command("query-chardev-backends")
async def query_chardev_backends(daemon: Daemon) -> list[ChardevBackendInfo]:
    """List the kinds of character devices."""
    return [ChardevBackendInfo(name=name) for name in BACKENDS]


@command("ringbuf-write")
async def ringbuf_write(daemon: Daemon, arguments: RingbufWrite) -> None:
    """Write to a ring buffer."""
    device = _ringbuf(daemon, arguments.device)
    if arguments.format is DataFormat.BASE64:
        device.write(_decode(arguments.data))
    else:
        device.write(arguments.data.encode("utf-8", "surrogatepass"))


@command("ringbuf-read")
async def ringbuf_read(daemon: Daemon, arguments: RingbufRead) -> str:
    """Remove and return the oldest bytes of a ring buffer."""
    device = _ringbuf(daemon, arguments.device)
    if arguments.size <= 0:
        raise ChardevError("size must be greater than zero")
    data = device.read(arguments.size)
    if arguments.format is DataFormat.BASE64:
        return base64.b64encode(data).decode()
    return data.decode("utf-8", "replace")


def _ringbuf(daemon: Daemon, name: str) -> RingbufChardev:
    device = daemon.chardevs.get(name)
    if device is None:
        raise ChardevError(f"Device '{name}' not found")
    if not isinstance(device, RingbufChardev):
        raise ChardevError(f"{name} is not a ringbuf device")
    return device


def _decode(text: str) -> bytes:
    """Decode base64; padding may be missing, and as in QEMU white space is ignored."""
    text = "".join(text.split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ChardevError("Base64 data contains invalid characters") from error
