# SPDX-License-Identifier: Apache-2.0
"""The daemon's character devices: made, found, changed and removed."""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any, cast

from vhostblk.chardev.base import Chardev, ChardevError
from vhostblk.chardev.outputs import open_file
from vhostblk.crypto.keys import Keys
from vhostblk.errors import log_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.net.listener import Listener
    from vhostblk.schema.chardev import ChardevBackend

logger = logging.getLogger(__name__)

#: Where each backend is implemented; modules are imported when first needed.
BACKENDS = {
    "file": ("file", "FileChardev"),
    "memory": ("ringbuf", "RingbufChardev"),
    "null": ("null", "NullChardev"),
    "pipe": ("file", "PipeChardev"),
    "pty": ("terminal", "PtyChardev"),
    "ringbuf": ("ringbuf", "RingbufChardev"),
    "serial": ("file", "SerialChardev"),
    "socket": ("socket", "SocketChardev"),
    "stdio": ("terminal", "StdioChardev"),
    "udp": ("udp", "UdpChardev"),
}

#: Backends of QEMU's daemon that vhostblk does not have.
_UNAVAILABLE = frozenset({"hub", "mux", "parallel"})


class Chardevs:
    """All character devices by id."""

    def __init__(self, keys: Keys | None = None) -> None:
        """`keys` are what devices may name: TLS credentials, and who is allowed."""
        self._keys = keys or Keys({})
        #: False: standard input and output are going to be closed.
        self.stdio_available = True
        #: Sockets of another process's devices, by id and where they listen, for those made here.
        self.inherited: dict[tuple[str, str], list[Listener]] = {}
        #: None: being started.
        self._devices: dict[str, Chardev | None] = {}

    def __iter__(self) -> Iterator[Chardev]:
        return (device for device in self._devices.values() if device is not None)

    def get(self, chardev_id: str) -> Chardev | None:
        """Return a device, or None."""
        return self._devices.get(chardev_id)

    def find(self, chardev_id: str) -> Chardev:
        """Return a device; raises ChardevError."""
        device = self.get(chardev_id)
        if device is None:
            raise ChardevError(f"Chardev '{chardev_id}' not found")
        return device

    def knows(self, chardev_id: str) -> bool:
        """Tell whether an id is taken."""
        return chardev_id in self._devices

    async def add(self, chardev_id: str, backend: ChardevBackend) -> Chardev:
        """Make a device; returns once it is usable, and its peer there where that is asked for."""
        if chardev_id in self._devices:
            raise ChardevError(f"Chardev with id '{chardev_id}' already exists")
        self._devices[chardev_id] = None
        try:
            device = self._make(chardev_id, backend)
            self._inherit(device)
            try:
                _open_log(device, backend)
                await device.start()
            except BaseException:
                _close_log(device)
                raise
        except BaseException:
            del self._devices[chardev_id]
            raise
        self._devices[chardev_id] = device
        return device

    def _inherit(self, device: Chardev) -> None:
        if self.inherited:
            from vhostblk.chardev.socket import SocketChardev

            if isinstance(device, SocketChardev):
                listeners = self.inherited.pop((device.label, device.listens_at), [])
                device.inherit(listeners)

    async def begin_change(self, chardev_id: str) -> None:
        """Remove a device that nobody uses, so that another one can take its name and place.

        Both may want the same file or socket. When the new one fails, there is none any more.
        """
        device = self._devices.get(chardev_id)
        if device is None:
            raise ChardevError(f"Chardev '{chardev_id}' does not exist")
        if device.frontend is not None:
            raise ChardevError("Chardev user does not support chardev hotswap")
        await self._close(device)

    async def remove(self, chardev_id: str) -> None:
        """Remove a device that nobody uses."""
        device = self.find(chardev_id)
        if device.frontend is not None:
            raise ChardevError(f"Chardev '{chardev_id}' is busy")
        await self._close(device)

    async def close(self) -> None:
        """Close all devices, the last first."""
        for device in reversed(list(self)):
            try:
                await self._close(device)
            except Exception as error:
                log_error(logger, f"while closing chardev '{device.label}'", error)

    async def _close(self, device: Chardev) -> None:
        del self._devices[device.label]
        await device.close()
        _close_log(device)

    def _make(self, chardev_id: str, backend: ChardevBackend) -> Chardev:
        name = cast("str", type(backend).__struct_config__.tag)
        if name in _UNAVAILABLE:
            raise ChardevError(f"Backend '{name}' is not available in vhostblk")
        if name not in BACKENDS:
            raise ChardevError(f"'{name}' is not a valid char driver name")
        if name == "stdio" and not self.stdio_available:
            raise ChardevError("cannot use stdio with -daemonize")
        module_name, class_name = BACKENDS[name]
        module = importlib.import_module(f"vhostblk.chardev.{module_name}")
        make: Any = getattr(module, class_name)
        if name == "null":
            return cast("Chardev", make(chardev_id))
        if name == "socket":
            return cast("Chardev", make(chardev_id, backend.data, self._keys))
        if name == "memory":
            return cast("Chardev", make(chardev_id, backend.data, name))
        return cast("Chardev", make(chardev_id, backend.data))


def _open_log(device: Chardev, backend: ChardevBackend) -> None:
    path = backend.data.logfile
    if not isinstance(path, str):
        return
    mode = os.O_APPEND if backend.data.logappend else os.O_TRUNC
    device.log_fd = open_file(path, os.O_WRONLY | os.O_CREAT | mode, "Could not create")


def _close_log(device: Chardev) -> None:
    if device.log_fd is not None:
        os.close(device.log_fd)
        device.log_fd = None
