# SPDX-License-Identifier: Apache-2.0
"""The choice of the kind of `AioEngine`, and the open engines.

Each event loop has one engine of a kind. The first node that needs it opens it, and the last one
closes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from vhostblk.block.aio.engine import AioUnavailableError
from vhostblk.block.errors import BlockError
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.common import BlockdevAioOptions

if TYPE_CHECKING:
    from vhostblk.block.aio.engine import AioEngine

logger = logging.getLogger(__name__)

_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[BlockdevAioOptions, AioEngine]] = (
    WeakKeyDictionary()
)
_fallback_logged = False


def acquire(option: BlockdevAioOptions | UnsetType) -> AioEngine:
    """Return the running loop's engine of a kind; pair with `release()`.

    `native` (libaio in QEMU) uses io_uring, which is better at the same. Without the option,
    io_uring is used if it works. Raises BlockError if the requested kind doesn't work.
    """
    if option is BlockdevAioOptions.THREADS:
        engine = _get(BlockdevAioOptions.THREADS)
    else:
        try:
            engine = _get(BlockdevAioOptions.IO_URING)
        except AioUnavailableError as error:
            if option is not UNSET:
                raise BlockError(
                    f"aio={option.value}: io_uring is not available: {error}"
                ) from None
            _log_fallback(error)
            engine = _get(BlockdevAioOptions.THREADS)
    engine.users += 1
    return engine


async def release(engine: AioEngine) -> None:
    """Release an engine; the last user closes it."""
    engine.users -= 1
    if engine.users == 0:
        del _engines[engine.loop][engine.kind]
        await engine.close()


def _get(kind: BlockdevAioOptions) -> AioEngine:
    engines = _engines.setdefault(asyncio.get_running_loop(), {})
    if kind not in engines:
        engines[kind] = _open(kind)
    return engines[kind]


def _open(kind: BlockdevAioOptions) -> AioEngine:
    if kind is BlockdevAioOptions.THREADS:
        from vhostblk.block.aio.threads import ThreadsEngine

        return ThreadsEngine()
    if os.environ.get("VHOSTBLK_IO_URING") == "off":
        raise AioUnavailableError("switched off by VHOSTBLK_IO_URING=off")
    from vhostblk.block.aio.uring import UringEngine

    return UringEngine()


def _log_fallback(reason: AioUnavailableError) -> None:
    global _fallback_logged
    if not _fallback_logged:
        _fallback_logged = True
        logger.warning("io_uring is not available (%s): file I/O uses a pool of threads", reason)
