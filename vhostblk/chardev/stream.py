# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of non-blocking descriptors on the event loop, with a bounded buffer.

`Stream` is one conversation; `StreamChardev` is a device with one conversation after the other.
Descriptors that epoll(7) does not support, such as regular files, count as always ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from vhostblk.chardev.base import HIGH_WATER, READ_SIZE, Chardev
from vhostblk.errors import VhostblkError
from vhostblk.ratelimit import RateLimitedLogger

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.net.codec import Codec

logger = logging.getLogger(__name__)

#: A refused writer may continue when at most this many bytes are queued.
LOW_WATER = HIGH_WATER // 4

#: Maximum number of bytes in one system call.
_WRITE_SIZE = 1 << 20


class Stream:
    """A conversation: it reads from one descriptor, writes to the same or another, and owns both.

    With a codec, the user writes and reads decoded data, and the descriptors carry encoded data.
    If a peer makes the codec answer and doesn't read the answers, it is not read from.
    """

    def __init__(
        self,
        chardev: StreamChardev,
        read_fd: int | None,
        write_fd: int,
        close: Callable[[], object],
        codec: Codec | None = None,
    ) -> None:
        """Begin without reading; `close` closes the descriptors."""
        self._codec = codec
        #: The codec may have data that came with the end of its handshake.
        self._drain: asyncio.Handle | None = None
        self._drained = codec is None
        #: Reading has stopped because too much is queued.
        self._stalled = False
        self._chardev = chardev
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._close = close
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._refused = False
        self._reading = False
        self._next_read: asyncio.Handle | None = None
        self._ending: asyncio.Handle | None = None
        self._flushers: list[asyncio.Future[None]] = []
        self.ended = False

    def write(self, data: bytes) -> bool:
        """Queue `data`, or refuse it because the queue is full."""
        if self.ended or self._ending is not None:
            return True
        if len(self._unsent) >= HIGH_WATER:
            self._refused = True
            return False
        if self._codec is not None:
            try:
                data = self._codec.encode(data)
            except VhostblkError as error:
                self._fail_later(error)
                return True
        self._queue(data)
        return True

    def _queue(self, data: bytes) -> None:
        """Queue encoded bytes."""
        waiting = bool(self._unsent)
        self._unsent += data
        if not waiting and data:
            self._send()
            if self._unsent and not self.ended and self._ending is None:
                self._loop.add_writer(self._write_fd, self._on_writable)

    async def flush(self) -> None:
        """Wait until all queued data is written."""
        if self._unsent and not self.ended:
            future = self._loop.create_future()
            self._flushers.append(future)
            await future

    def resume(self) -> None:
        """Start reading."""
        if self._reading or self.ended or self._read_fd is None:
            return
        self._reading = True
        if not self._drained and self._drain is None:
            self._drain = self._loop.call_soon(self._drain_codec)
        if self._stalled:
            return
        try:
            self._loop.add_reader(self._read_fd, self._on_readable)
        except PermissionError:  # epoll does not support it
            self._next_read = self._loop.call_soon(self._on_readable)

    def pause(self) -> None:
        """Stop reading."""
        if not self._reading:
            return
        self._reading = False
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        if self._stalled:
            return
        assert self._read_fd is not None
        if self._next_read is not None:
            self._next_read.cancel()
            self._next_read = None
        else:
            self._loop.remove_reader(self._read_fd)

    def end(self) -> None:
        """Close, after an attempt to send the queued data."""
        if self.ended:
            return
        if self._ending is None:
            if self._codec is not None:
                with contextlib.suppress(VhostblkError):  # then the closing handshake is omitted
                    self._unsent += self._codec.finish()
            if self._unsent:
                self._send()
        self.ended = True
        self.pause()
        self._loop.remove_writer(self._write_fd)
        if self._ending is not None:
            self._ending.cancel()
        self._unsent.clear()
        self._wake_flushers()
        if self._codec is not None:
            self._codec.close()
        self._close()

    def stop_reading(self) -> None:
        """Close the input, which has ended."""
        self.pause()
        self._read_fd = None

    def _on_readable(self) -> None:
        assert self._read_fd is not None
        polled = self._next_read is not None
        try:
            data = os.read(self._read_fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # reset by the peer, or a terminal that hung up
            data = b""
        if not data:
            self._chardev._input_ended()
            return
        if polled:
            self._next_read = self._loop.call_soon(self._on_readable)
        if self._codec is not None:
            self._decode(self._codec, data)
        elif self._chardev.frontend is not None:
            self._chardev.frontend.received(data)

    def _drain_codec(self) -> None:
        self._drain = None
        assert self._codec is not None
        self._decode(self._codec, b"")

    def _decode(self, codec: Codec, data: bytes) -> None:
        """Pass decoded data of the peer on, and send the codec's answers."""
        self._drained = True
        try:
            data = codec.feed(data)
            self._queue(codec.encode(b""))
        except VhostblkError as error:
            self._chardev._codec_failed(error)
            return
        if data and self._chardev.frontend is not None:
            self._chardev.frontend.received(data)
        if self.ended:
            return
        if codec.ended:
            self._chardev._input_ended()
        elif len(self._unsent) >= HIGH_WATER and not self._stalled:
            reading = self._reading
            self.pause()
            self._reading, self._stalled = reading, True

    def _fail_later(self, error: VhostblkError) -> None:
        """End the conversation from the loop: a writer does not expect it during its call."""
        if not self.ended and self._ending is None:
            self._ending = self._loop.call_soon(self._chardev._codec_failed, error)

    def _send(self) -> None:
        """Write as much as possible without blocking."""
        try:
            while self._unsent:
                with memoryview(self._unsent) as view, view[:_WRITE_SIZE] as part:
                    count = os.write(self._write_fd, part)
                del self._unsent[:count]
        except BlockingIOError:
            pass
        except OSError:
            # Called from the loop: a writer does not expect a callback during its call.
            self._unsent.clear()
            if not self.ended and self._ending is None:
                self._ending = self._loop.call_soon(self._chardev._output_failed)
        if not self._unsent:
            self._wake_flushers()

    def _on_writable(self) -> None:
        self._send()
        if not self._unsent:
            self._loop.remove_writer(self._write_fd)
        if self._stalled and len(self._unsent) <= LOW_WATER and self._ending is None:
            self._stalled = False
            if self._reading:
                self._reading = False
                self.resume()
        if self._refused and len(self._unsent) <= LOW_WATER and self._ending is None:
            self._refused = False
            if self._chardev.frontend is not None:
                self._chardev.frontend.writable()

    def _wake_flushers(self) -> None:
        for future in self._flushers:
            if not future.done():
                future.set_result(None)
        self._flushers.clear()


class StreamChardev(Chardev):
    """A device with a stream to its peer."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self._stream: Stream | None = None
        self._paused = False
        self._log = RateLimitedLogger(logger, f"chardev '{label}': ")

    async def close(self) -> None:
        """End the conversation."""
        if self._stream is not None:
            self._stream.end()
            self._stream = None
        self._open = False

    def detach(self) -> None:
        """Forget the front-end, without a callback."""
        super().detach()
        self._paused = False

    def pause_reading(self) -> None:
        """Stop reading from the peer."""
        self._paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume_reading(self) -> None:
        """Read from the peer again."""
        self._paused = False
        if self._stream is not None and self.frontend is not None:
            self._stream.resume()

    async def flush(self) -> None:
        """Wait until all queued data is sent, or the peer has disconnected."""
        if self._stream is not None:
            await self._stream.flush()

    def disconnect(self) -> None:
        """Disconnect the peer."""
        if self._stream is not None:
            self._stream.end()
            self._stream = None
            self._closed()

    def _write(self, data: bytes) -> bool:
        return True if self._stream is None else self._stream.write(data)

    def _begin(
        self,
        read_fd: int | None,
        write_fd: int,
        close: Callable[[], object],
        codec: Codec | None = None,
    ) -> None:
        """Begin a conversation over non-blocking descriptors."""
        self._stream = Stream(self, read_fd, write_fd, close, codec)
        self._opened()
        # The front-end may have hung up at once.
        if self._stream is not None and self.frontend is not None and not self._paused:
            self._stream.resume()

    def _input_ended(self) -> None:
        """Called when the input has ended: by default the conversation ends, too."""
        self.disconnect()

    def _codec_failed(self, error: VhostblkError) -> None:
        """Called when the peer violates the codec's protocol: the conversation ends."""
        self._log.warning("%s", error)
        self.disconnect()

    def _output_failed(self) -> None:
        """Called when the output has failed: by default the conversation ends."""
        self.disconnect()


def close_fds(*fds: int) -> None:
    """Close descriptors; one that is given twice is closed once."""
    for fd in dict.fromkeys(fds):
        with contextlib.suppress(OSError):
            os.close(fd)
