# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is with an image that several daemons export (`allow-inactive`), as in a migration.

Such an export's node is active, and the image locked, while queues run. When the last one has
stopped, which a migrating front-end sees to before the guest goes on elsewhere, the image is put in
order and left to others; when one starts, it is taken back. Nobody has to tell either daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.block.errors import BlockError
from vhostblk.errors import errors_as
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from vhostblk.block.graph.backend import BlockBackend
    from vhostblk.ratelimit import RateLimitedLogger


class ImageOwnership:
    """One export's right to its image; for ever, where `backend` does not allow an inactive node.

    While queues run the node can't be made inactive by others, for the guest would see errors.
    """

    def __init__(self, backend: BlockBackend, log: RateLimitedLogger) -> None:
        self._backend = backend
        self._log = log
        self._shared = backend.allow_inactive

    async def take(self) -> None:
        """Have the image; raises SetupError where another process has it."""
        if not self._shared:
            return
        with errors_as(SetupError, of=BlockError):
            await self._backend.set_active(active=True)
        self._backend.allow_inactive = False

    async def leave(self) -> None:
        """Leave the image to others; where it can't be put in order it stays ours."""
        if not self._shared:
            return
        self._backend.allow_inactive = True
        try:
            await self._backend.set_active(active=False)
        except BlockError as error:
            self._log.warning("the image stays locked: %s", error)
