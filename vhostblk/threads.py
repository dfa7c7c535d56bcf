# SPDX-License-Identifier: Apache-2.0
"""Calls that may never return, on threads that don't prevent the process from exiting."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises.

    If the caller is cancelled, the thread continues and its result is dropped. At exit the
    interpreter does not wait for it, unlike for the threads of asyncio's own pool.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            action = partial(_set_result, future, call())
        except StopIteration as error:  # a future refuses it, and would never be done
            action = partial(_set_exception, future, RuntimeError(repr(error)))
        except BaseException as error:
            action = partial(_set_exception, future, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(action)

    threading.Thread(target=run, name="vhostblk-call", daemon=True).start()
    return await future


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
