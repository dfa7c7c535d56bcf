# SPDX-License-Identifier: Apache-2.0
"""vhostblk: block nodes exported to virtual machines. Start at `vhostblk.daemon.Daemon`.

Importing this package costs next to nothing; `Daemon` is loaded when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.version import __version__

if TYPE_CHECKING:
    from vhostblk.daemon import Daemon

__all__ = ["Daemon", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Daemon":
        from vhostblk.daemon import Daemon

        return Daemon
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
