# SPDX-License-Identifier: Apache-2.0
"""Where work that takes long can be paused or cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    #: Awaited between two steps; may raise.
    Pause = Callable[[], Awaitable[None]]


async def no_pause() -> None:
    """Go on at once."""
