# SPDX-License-Identifier: Apache-2.0
"""How worn a flash device is, as eMMC and UFS say of themselves, read from sysfs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode


class Lifetime(NamedTuple):
    """In the numbers of JEDEC (eMMC: EXT_CSD 267 to 269), which are VIRTIO's, 5.2.6.2, too."""

    #: Reserved blocks: 0 not defined, 1 normal, 2 and 3 most or nearly all of them used up.
    pre_eol_info: int
    #: Wear of the two kinds of memory in steps of 10 %, 1 to 11; 0: not defined.
    typ_a: int
    typ_b: int


class HasLifetime(ABC):
    """The capability to say how worn the storage is."""

    @property
    @abstractmethod
    def has_lifetime(self) -> bool:
        """Tell whether `lifetime` has something to say."""

    @abstractmethod
    async def lifetime(self) -> Lifetime | None:
        """Say how worn the storage is."""


def lifetime_of(node: BlockNode) -> HasLifetime | None:
    """Return what may say how worn a node's storage is; None: nothing does."""
    found: HasLifetime | None = node.capability(HasLifetime)
    return found


def read_lifetime(disk: Path) -> Lifetime | None:
    """Read that of a disk, a directory below /sys/block; None where it says nothing."""
    try:
        return _emmc(disk / "device") or _ufs(disk / "device")
    except (OSError, ValueError):
        return None


def _emmc(device: Path) -> Lifetime | None:
    life_time = device / "life_time"
    if not life_time.exists():
        return None
    typ_a, typ_b = (int(word, 16) for word in life_time.read_text().split())
    return Lifetime(_number(device / "pre_eol_info"), typ_a, typ_b)


def _ufs(device: Path) -> Lifetime | None:
    """Look for the host controller, which is above the SCSI device."""
    for parent in device.resolve().parents:
        health = parent / "health_descriptor"
        if health.is_dir():
            names = ("eol_info", "life_time_estimation_a", "life_time_estimation_b")
            return Lifetime(*(_number(health / name) for name in names))
    return None


def _number(path: Path) -> int:
    return int(path.read_text(), 16)
