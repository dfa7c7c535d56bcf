# SPDX-License-Identifier: Apache-2.0
"""QAPI types shared by several schema modules: integers (`docs/devel/qapi-code-gen`) and enums."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from msgspec import Meta

# The title is the type's name in messages. A plain `int` is a signed 64-bit integer.
Uint16 = Annotated[int, Meta(ge=0, le=0xFFFF, title="uint16_t")]
Uint32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF, title="uint32_t")]
Int32 = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31, title="int32_t")]
Uint64 = Annotated[int, Meta(title="uint64")]
#: A `Uint64`; in keyval text it may have a suffix, as in `64k`.
Size = Annotated[int, Meta(title="size")]


class PreallocMode(Enum):
    """The preallocation of the new part of an image."""

    OFF = "off"
    METADATA = "metadata"
    FALLOC = "falloc"
    FULL = "full"


class OnOffAuto(Enum):
    """`OnOffAuto`."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class BlockdevAioOptions(Enum):
    """The interface for asynchronous I/O."""

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"
