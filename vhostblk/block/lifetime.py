# SPDX-License-Identifier: Apache-2.0
"""The wear of eMMC and UFS flash devices, read from sysfs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.graph.node import BlockNode


class Lifetime(NamedTuple):
    """Wear in JEDEC's numbers (eMMC: EXT_CSD 267 to 269), as in VIRTIO 5.2.6.2."""

    #: Reserved blocks: 0 not defined, 1 normal, 2 most used up, 3 nearly all used up.
    pre_eol_info: int
    #: Wear of the two types of memory in steps of 10 %, 1 to 11; 0: not defined.
    typ_a: int
    typ_b: int


class HasLifetime(ABC):
    """The capability to report the wear of the storage."""

    @property
    @abstractmethod
    def has_lifetime(self) -> bool:
        """Whether `lifetime` has data."""

    @abstractmethod
    async def lifetime(self) -> Lifetime | None:
        """Return the wear of the storage."""


def lifetime_of(node: BlockNode) -> HasLifetime | None:
    """Return a node's capability to report wear, or None."""
    found: HasLifetime | None = node.capability(HasLifetime)
    return found


def read_lifetime(disk: Path) -> Lifetime | None:
    """Return the wear of a disk, given its directory below /sys/block; None: not reported."""
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
    """Return the values of a UFS device, which are at the host controller above the SCSI device."""
    for parent in device.resolve().parents:
        health = parent / "health_descriptor"
        if health.is_dir():
            names = ("eol_info", "life_time_estimation_a", "life_time_estimation_b")
            return Lifetime(*(_number(health / name) for name in names))
    return None


def _number(path: Path) -> int:
    return int(path.read_text(), 16)
