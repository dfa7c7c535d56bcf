# SPDX-License-Identifier: Apache-2.0
"""Compressed clusters (section "Compressed Clusters Descriptor")."""

from __future__ import annotations

import errno
import zlib
from typing import Any

from vhostblk.block.drivers.qcow2.layout import COMPRESSION_ZSTD
from vhostblk.block.errors import BlockError

#: The window of the format's deflate streams; readers support no larger one.
_WINDOW_BITS = 12
#: The maximum window of a stream, so that an image can't make us allocate more.
_ZSTD_WINDOW = 1 << 23


def check_available(kind: int) -> None:
    """Raise BlockError if images with this compression type can't be opened."""
    if kind == COMPRESSION_ZSTD:
        _zstandard()


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise BlockError(
            "qcow2: compression type 'zstd' needs the package zstandard "
            "(pip install 'vhostblk[zstd]')"
        ) from None
    return zstandard


def decompress(kind: int, data: bytes, size: int) -> bytes:
    """Return the `size` bytes of a cluster; data after the end of the stream is ignored.

    Raises OSError(EIO) if the stream is broken or too short.
    """
    try:
        if kind == COMPRESSION_ZSTD:
            zstandard = _zstandard()
            decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
            with decompressor.stream_reader(data, read_across_frames=True) as reader:
                result = bytes(_read_fully(reader, size))
        else:
            result = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
    except Exception as error:
        raise OSError(errno.EIO, f"compressed cluster: {error}") from error
    if len(result) != size:
        raise OSError(errno.EIO, "compressed cluster: the stream is too short")
    return result


def _read_fully(reader: Any, size: int) -> bytearray:
    result = bytearray()
    while len(result) < size and (part := reader.read(size - len(result))):
        result += part
    return result


def compress(kind: int, data: bytes) -> bytes | None:
    """Return the compressed cluster; None if it isn't shorter."""
    if kind == COMPRESSION_ZSTD:
        packed = bytes(_zstandard().ZstdCompressor().compress(data))
    else:
        compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -_WINDOW_BITS)
        packed = compressor.compress(data) + compressor.flush()
    return packed if len(packed) < len(data) else None
