# SPDX-License-Identifier: Apache-2.0
"""Wear of flash devices, from directories as eMMC and UFS drivers make them in sysfs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vhostblk.block.lifetime import Lifetime, read_lifetime

if TYPE_CHECKING:
    from pathlib import Path


def files(directory: Path, **contents: str) -> None:
    directory.mkdir(parents=True)
    for name, text in contents.items():
        (directory / name).write_text(text)


def test_emmc(tmp_path: Path) -> None:
    files(tmp_path / "device", life_time="0x01 0x0b\n", pre_eol_info="0x02\n")
    assert read_lifetime(tmp_path) == Lifetime(2, 1, 11)


def test_ufs_says_it_at_the_host_controller(tmp_path: Path) -> None:
    controller = tmp_path / "1d84000.ufshc"
    disk = controller / "host0" / "target0:0:0" / "0:0:0:0" / "block" / "sda"
    disk.mkdir(parents=True)
    (disk / "device").symlink_to(disk.parent.parent)
    files(
        controller / "health_descriptor",
        eol_info="0x01\n",
        life_time_estimation_a="0x03\n",
        life_time_estimation_b="0x00\n",
    )
    assert read_lifetime(disk) == Lifetime(1, 3, 0)


@pytest.mark.parametrize("text", ["", "0x01\n", "0x01 0x02 0x03\n", "new\n"])
def test_nonsense_is_nothing(tmp_path: Path, text: str) -> None:
    files(tmp_path / "device", life_time=text, pre_eol_info="0x01\n")
    assert read_lifetime(tmp_path) is None


def test_other_disks_say_nothing(tmp_path: Path) -> None:
    assert read_lifetime(tmp_path) is None
