# SPDX-License-Identifier: Apache-2.0
"""Points at which long work can be paused or cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    #: Awaited between two steps; may raise.
    Pause = Callable[[], Awaitable[None]]


async def no_pause() -> None:
    """Return at once."""
