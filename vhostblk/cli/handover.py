# SPDX-License-Identifier: Apache-2.0
"""The options `--handover` and `--takeover`.

A process can take over and later hand over. The modules for this are imported only if one of the
options is given.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.cli.planned import Planned
    from vhostblk.daemon import Daemon
    from vhostblk.handover.giver import Giver
    from vhostblk.handover.taker import Taker

logger = logging.getLogger(__name__)

#: Only the owner may take over.
_MODE = 0o600


class Handover:
    """Taking over at the start, and handing over later; the path of an absent option is None."""

    def __init__(self, daemon: Daemon, takeover: str | None, handover: str | None) -> None:
        self._daemon = daemon
        self._takeover = takeover
        self._path = None if handover is None else str(Path(handover).absolute())
        self._taker: Taker | None = None
        self._giver: Giver | None = None
        daemon.movable = handover is not None

    async def begin(self, planned: Planned | None) -> bool:
        """Begin to take over, if there is a daemon to take over from; raises VhostblkError.

        `planned` is what the command line creates if there is none.
        """
        if self._takeover is None:
            return False
        from vhostblk.handover import taker

        self._taker = await taker.find(self._takeover)
        if self._taker is None:
            return False
        for line in planned.differences(self._taker.definitions) if planned is not None else ():
            logger.warning("warning: --takeover: %s", line)
        await self._taker.begin(self._daemon)
        return True

    async def finish(self) -> None:
        """Take over; if this raises VhostblkError, the other daemon continues."""
        assert self._taker is not None
        await self._taker.finish(self._daemon)

    @property
    def taken(self) -> bool:
        """Whether this process has taken over."""
        return self._taker is not None

    @property
    def given(self) -> bool:
        """Whether another process has taken over from this one."""
        return self._giver is not None and self._giver.given

    @property
    def made_files(self) -> list[str]:
        """The files that `close` will remove."""
        return [] if self._path is None else [self._path]

    def serve(self, leave: Callable[[], object]) -> None:
        """Wait for a process that takes over, and then call `leave()`. Raises ListenError."""
        taker = self._taker
        inherits = taker is not None and taker.handover_path == self._path
        if taker is not None and not inherits:
            taker.handover.close()
        if self._path is None:
            return
        from vhostblk.handover.giver import Giver
        from vhostblk.net.listener import UnixAddress, listen

        if taker is not None and inherits:
            listener = taker.handover
        else:
            listener = listen(UnixAddress(self._path, _MODE))
        self._giver = Giver(self._daemon, listener, leave)
        self._giver.start()

    def release(self) -> None:
        """Let the other process exit, after this one has taken over."""
        if self._taker is not None:
            self._taker.release()

    async def close(self) -> None:
        """Stop waiting."""
        if self._giver is not None:
            await self._giver.close()
