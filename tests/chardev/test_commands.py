# SPDX-License-Identifier: Apache-2.0
"""The QMP commands of character devices, without a monitor in between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from vhostblk.daemon import Daemon
from vhostblk.errors import VhostblkError
from vhostblk.qmp.commands import chardev
from vhostblk.schema.chardev import (
    ChardevAdd,
    ChardevId,
    ChardevInfo,
    DataFormat,
    RingbufRead,
    RingbufWrite,
)
from vhostblk.schema.convert import from_json

if TYPE_CHECKING:
    from pathlib import Path


def _add(chardev_id: str, kind: str, **data: object) -> ChardevAdd:
    backend = {"type": kind, "data": data}
    options: ChardevAdd = from_json(ChardevAdd, {"id": chardev_id, "backend": backend})
    return options


def _refusal(*failing: Any) -> str:
    async def main() -> str:
        async with Daemon() as daemon:
            *before, last = failing
            for handler, arguments in before:
                await handler(daemon, arguments)
            handler, arguments = last
            with pytest.raises(VhostblkError) as caught:
                await handler(daemon, arguments)
            return str(caught.value)

    return asyncio.run(main())


def test_ring_buffers() -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            await chardev.chardev_add(daemon, _add("r", "ringbuf", size=8))
            await chardev.ringbuf_write(daemon, RingbufWrite(device="r", data="0123456789"))
            assert await chardev.ringbuf_read(daemon, RingbufRead(device="r", size=4)) == "2345"
            assert await chardev.ringbuf_read(daemon, RingbufRead(device="r", size=100)) == "6789"
            base64 = DataFormat.BASE64
            write = RingbufWrite(device="r", data="/8Bh", format=base64)
            await chardev.ringbuf_write(daemon, write)
            await chardev.ringbuf_write(daemon, write)
            assert (
                await chardev.ringbuf_read(daemon, RingbufRead(device="r", size=3, format=base64))
                == "/8Bh"
            )
            assert (
                await chardev.ringbuf_read(daemon, RingbufRead(device="r", size=9))
                == "\ufffd\ufffda"
            )

    asyncio.run(main())


def test_query_change_and_remove(tmp_path: Path) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            await chardev.chardev_add(daemon, _add("a", "null"))
            await chardev.chardev_change(daemon, _add("a", "file", out=str(tmp_path / "f")))
            info = ChardevInfo(label="a", filename="file", frontend_open=False)
            assert await chardev.query_chardev(daemon) == [info]
            await chardev.chardev_send_break(daemon, ChardevId(id="a"))
            answer = await chardev.chardev_add(daemon, _add("p", "pty"))
            assert isinstance(answer.pty, str)
            assert answer.pty.startswith("/dev/")
            await chardev.chardev_remove(daemon, ChardevId(id="a"))
            assert [device.label for device in daemon.chardevs] == ["p"]

    asyncio.run(main())


def test_refusals() -> None:
    add, null = chardev.chardev_add, _add("a", "null")
    assert _refusal((add, null), (add, null)) == "Chardev with id 'a' already exists"
    assert _refusal((add, _add("b", "vc"))) == (
        "Failed to add chardev 'b': 'vc' is not a valid char driver name"
    )
    assert _refusal((chardev.chardev_change, null)) == "Chardev 'a' does not exist"
    assert _refusal((chardev.chardev_remove, ChardevId(id="a"))) == "Chardev 'a' not found"
    assert _refusal((chardev.chardev_send_break, ChardevId(id="a"))) == "Chardev 'a' not found"
    write = RingbufWrite(device="a", data="x")
    assert _refusal((chardev.ringbuf_write, write)) == "Device 'a' not found"
    assert _refusal((add, null), (chardev.ringbuf_write, write)) == "a is not a ringbuf device"
    ring = (add, _add("a", "ringbuf"))
    bad = RingbufWrite(device="a", data="!!", format=DataFormat.BASE64)
    assert _refusal(ring, (chardev.ringbuf_write, bad)) == (
        "Base64 data contains invalid characters"
    )
    assert _refusal(ring, (chardev.ringbuf_read, RingbufRead(device="a", size=-1))) == (
        "size must be greater than zero"
    )
