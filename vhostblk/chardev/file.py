# SPDX-License-Identifier: Apache-2.0
"""Character devices on files: regular ones, named pipes, serial lines."""

from __future__ import annotations

import os
import termios
import tty
from functools import partial
from typing import TYPE_CHECKING

from vhostblk.chardev.base import ChardevError
from vhostblk.chardev.outputs import open_file
from vhostblk.chardev.stream import StreamChardev, close_fds

if TYPE_CHECKING:
    from vhostblk.schema.chardev import ChardevFile, ChardevHostdev


class FileChardev(StreamChardev):
    """`file`: output goes to one file, input comes from another one, if any."""

    def __init__(self, label: str, options: ChardevFile) -> None:
        super().__init__(label)
        self._options = options

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return "file"

    async def start(self) -> None:
        """Open both files."""
        mode = os.O_APPEND if self._options.append else os.O_TRUNC
        write_fd = open_file(self._options.out, os.O_WRONLY | os.O_CREAT | mode)
        read_fd = None
        if isinstance(self._options.input, str):
            try:
                read_fd = open_file(self._options.input, os.O_RDONLY)
            except ChardevError:
                os.close(write_fd)
                raise
        fds = (write_fd,) if read_fd is None else (read_fd, write_fd)
        self._begin(read_fd, write_fd, partial(close_fds, *fds))

    def _input_ended(self) -> None:
        """Continue with output only."""
        assert self._stream is not None
        self._stream.stop_reading()


class PipeChardev(StreamChardev):
    """`pipe`: the named pipes `<device>.in` and `<device>.out`, or one for both."""

    def __init__(self, label: str, options: ChardevHostdev) -> None:
        super().__init__(label)
        self._device = options.device

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return "pipe"

    async def start(self) -> None:
        """Open the pipes for reading and writing, so that there is always a peer."""
        try:
            read_fd = open_file(f"{self._device}.in", os.O_RDWR)
        except ChardevError:
            read_fd = write_fd = open_file(self._device, os.O_RDWR)
        else:
            try:
                write_fd = open_file(f"{self._device}.out", os.O_RDWR)
            except ChardevError:
                os.close(read_fd)
                read_fd = write_fd = open_file(self._device, os.O_RDWR)
        self._begin(read_fd, write_fd, partial(close_fds, read_fd, write_fd))


class SerialChardev(StreamChardev):
    """`serial`: a serial line of the host, or any other device file."""

    def __init__(self, label: str, options: ChardevHostdev) -> None:
        super().__init__(label)
        self._device = options.device
        self._fd = -1

    @property
    def filename(self) -> str:
        """The description of the device in `query-chardev`."""
        return "serial"

    async def start(self) -> None:
        """Open the device; set a terminal to 115200 baud, 8 bits, no parity, raw."""
        self._fd = open_file(self._device, os.O_RDWR | os.O_NOCTTY)
        if os.isatty(self._fd):
            tty.setraw(self._fd)
            attributes = termios.tcgetattr(self._fd)
            attributes[4] = attributes[5] = termios.B115200
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        self._begin(self._fd, self._fd, partial(close_fds, self._fd))

    def send_break(self) -> None:
        """Send a break condition."""
        if self._stream is not None and os.isatty(self._fd):
            termios.tcsendbreak(self._fd, 1)

    def _input_ended(self) -> None:
        """Continue with output only, as for a device such as /dev/null."""
        assert self._stream is not None
        self._stream.stop_reading()
