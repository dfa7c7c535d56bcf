# SPDX-License-Identifier: Apache-2.0
"""vhostblk: block nodes exported to virtual machines. Start at `vhostblk.daemon.Daemon`.

`VhostblkError` is the base of all errors. Importing this package is fast; both classes are loaded
when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.version import __version__

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon
    from vhostblk.errors import VhostblkError

__all__ = ["Daemon", "VhostblkError", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Daemon":
        from vhostblk.daemon import Daemon

        return Daemon
    if name == "VhostblkError":
        from vhostblk.errors import VhostblkError

        return VhostblkError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
