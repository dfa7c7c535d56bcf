# SPDX-License-Identifier: Apache-2.0
"""Bytes in and out of non-blocking descriptors on the event loop, with a bounded buffer.

`Stream` is one conversation; `StreamChardev` is a device that has one conversation after the
other. What epoll(7) does not know, such as regular files, counts as always ready.
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

#: A writer that was refused goes on when no more than this waits.
LOW_WATER = HIGH_WATER // 4

#: Bytes offered to the system at once.
_WRITE_SIZE = 1 << 20


class Stream:
    """Reads from one descriptor and writes to another, or the same; it owns both.

    With a codec, what is written and read is data of the user, and the descriptors carry what the
    codec makes of it. A peer that makes the codec answer and doesn't read the answers is not read
    from either.
    """

    def __init__(
        self,
        chardev: StreamChardev,
        read_fd: int | None,
        write_fd: int,
        close: Callable[[], object],
        codec: Codec | None = None,
    ) -> None:
        """Begin, not reading yet; `close` closes the descriptors."""
        self._codec = codec
        #: The codec may have data that came with the end of its handshake.
        self._drain: asyncio.Handle | None = None
        self._drained = codec is None
        #: Not reading because too much waits to be written.
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
        """Take `data`, or refuse it because too much waits."""
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
        """Send bytes as they are, behind those that wait."""
        waiting = bool(self._unsent)
        self._unsent += data
        if not waiting and data:
            self._send()
            if self._unsent and not self.ended and self._ending is None:
                self._loop.add_writer(self._write_fd, self._on_writable)

    async def flush(self) -> None:
        """Wait until nothing waits to be written."""
        if self._unsent and not self.ended:
            future = self._loop.create_future()
            self._flushers.append(future)
            await future

    def resume(self) -> None:
        """Read what comes."""
        if self._reading or self.ended or self._read_fd is None:
            return
        self._reading = True
        if not self._drained and self._drain is None:
            self._drain = self._loop.call_soon(self._drain_codec)
        if self._stalled:
            return
        try:
            self._loop.add_reader(self._read_fd, self._on_readable)
        except PermissionError:  # epoll has nothing to say about it
            self._next_read = self._loop.call_soon(self._on_readable)

    def pause(self) -> None:
        """Read no more."""
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
        """Close, after an attempt to send what waits."""
        if self.ended:
            return
        if self._ending is None:
            if self._codec is not None:
                with contextlib.suppress(VhostblkError):  # then there is no good-bye
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
        """Forget the descriptor to read from, which has come to its end."""
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
        """Hand on what the peer has sent, and send what the codec answers."""
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
        """End the conversation from the loop: a writer doesn't expect it in its own call."""
        if not self.ended and self._ending is None:
            self._ending = self._loop.call_soon(self._chardev._codec_failed, error)

    def _send(self) -> None:
        """Write as much as the peer takes at once."""
        try:
            while self._unsent:
                with memoryview(self._unsent) as view, view[:_WRITE_SIZE] as part:
                    count = os.write(self._write_fd, part)
                del self._unsent[:count]
        except BlockingIOError:
            pass
        except OSError:
            # Told from the loop, because a writer does not expect to be called from its own call.
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
    """A device whose peer is at the other end of a stream."""

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
        """Leave what the peer sends where it is."""
        self._paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        self._paused = False
        if self._stream is not None and self.frontend is not None:
            self._stream.resume()

    async def flush(self) -> None:
        """Wait until everything taken is out of our hands, or the peer is gone."""
        if self._stream is not None:
            await self._stream.flush()

    def disconnect(self) -> None:
        """Hang up on the peer."""
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
        """The peer will send no more: by default the conversation is over."""
        self.disconnect()

    def _codec_failed(self, error: VhostblkError) -> None:
        """The peer breaks the rules of the codec: the conversation is over."""
        self._log.warning("%s", error)
        self.disconnect()

    def _output_failed(self) -> None:
        """The peer takes no more: by default the conversation is over."""
        self.disconnect()


def close_fds(*fds: int) -> None:
    """Close each of some descriptors once."""
    for fd in dict.fromkeys(fds):
        with contextlib.suppress(OSError):
            os.close(fd)
