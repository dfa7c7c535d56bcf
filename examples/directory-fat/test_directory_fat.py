# SPDX-License-Identifier: Apache-2.0
"""The FAT view against vhostblk's kit for drivers, fsck.fat and mtools; changing directories."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from directory_fat import names
from directory_fat.driver import DirectoryFatDriver
from directory_fat.tree import MAX_FILE

from vhostblk.errors import VhostblkError
from vhostblk.plugin.testing import Disk, DriverTests, opened

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = os.environ | {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}


def fill(directory: Path) -> Path:
    """Make a directory with something of everything."""
    deep = directory / "sub directory" / "Tiefe"
    deep.mkdir(parents=True)
    (directory / "README.TXT").write_text("short names stay as they are\n")
    (directory / "a long name, with spaces.text").write_bytes(bytes(range(256)) * 300)
    (directory / "a long name, with stripes.text").write_text("the same short name\n")
    (directory / "empty").touch()
    (directory / ".hidden").write_text("dot\n")
    (deep / "ünïcødé.bin").write_bytes(os.urandom(5000))
    for number in range(300):
        (directory / "sub directory" / f"file number {number}").write_text(str(number))
    (directory / "link").symlink_to("/etc/passwd")
    os.utime(directory / "empty", (0, 0))
    return directory


class TestDirectoryFat(DriverTests):
    driver = DirectoryFatDriver
    fat_type = "auto"
    refused = (
        ({"directory": "/no/such"}, "Could not open 'disk': No such file or directory"),
        ({"label": "more than eleven"}, "label 'more than eleven' is not 1 to 11 characters"),
        ({"fat-type": "fat12"}, "Parameter 'fat-type' does not accept value 'fat12'"),
    )

    def make_options(self, directory: Path) -> dict[str, Any]:
        path = directory / "shown"
        if not path.exists():
            fill(path)
        return {"directory": str(path), "fat-type": self.fat_type}


class TestDirectoryFat32(TestDirectoryFat):
    fat_type = "fat32"


def image(directory: Path, target: Path, **options: Any) -> Path:
    """Copy the disk to a file."""

    async def main() -> None:
        async with opened(DirectoryFatDriver, {"directory": str(directory), **options}) as disk:
            with target.open("wb") as file:
                for offset in range(0, disk.size, 1 << 20):
                    file.write(await disk.read(offset, min(1 << 20, disk.size - offset)))

    asyncio.run(main())
    return target


@pytest.mark.skipif(not shutil.which("fsck.vfat", path=ENVIRONMENT["PATH"]), reason="no dosfstools")
@pytest.mark.parametrize("fat_type", ["fat16", "fat32"])
def test_fsck_finds_nothing_to_say(tmp_path: Path, fat_type: str) -> None:
    disk = image(fill(tmp_path / "shown"), tmp_path / "image", **{"fat-type": fat_type})
    done = subprocess.run(
        ["fsck.vfat", "-n", disk], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "309 files" in done.stdout
    assert len(done.stdout.splitlines()) == 2, done.stdout


@pytest.mark.skipif(not shutil.which("mcopy"), reason="no mtools")
@pytest.mark.parametrize("fat_type", ["fat16", "fat32"])
def test_mtools_reads_the_same_files(tmp_path: Path, fat_type: str) -> None:
    shown = fill(tmp_path / "shown")
    disk = image(shown, tmp_path / "image", **{"fat-type": fat_type})
    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["mcopy", "-s", "-Q", "-i", disk, "::", copy], env=ENVIRONMENT, check=True)
    (shown / "link").unlink()
    subprocess.run(["diff", "-r", shown, copy], check=True)


def refusal(directory: Path, **options: Any) -> str:
    async def main() -> None:
        async with opened(DirectoryFatDriver, {"directory": str(directory), **options}):
            pass

    with pytest.raises(VhostblkError) as caught:
        asyncio.run(main())
    return str(caught.value)


def test_files_that_are_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with (tmp_path / "sub" / "large").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    assert refusal(tmp_path) == (
        "'sub/large' has 4294967296 bytes; a file on FAT has less than 4 GiB"
    )


def test_what_does_not_fit_fat16_becomes_fat32(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_FILE)
    assert refusal(tmp_path, **{"fat-type": "fat16"}) == "The directory is too large for FAT16"

    async def main() -> None:
        async with opened(DirectoryFatDriver, {"directory": str(tmp_path)}) as disk:
            assert (await disk.read(0, 512))[82:87] == b"FAT32"
            assert disk.size > MAX_FILE

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a:b", "The name 'a:b' has a character that FAT forbids: ':' (in 'sub')"),
        ("dot.", "The name 'dot.' ends with a space or dot, which FAT forbids (in 'sub')"),
        (b"\xff\xfe".decode(errors="surrogateescape"), "is not UTF-8 (in 'sub')"),
    ],
)
def test_names_that_fat_cannot_hold_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).touch()
    assert refusal(tmp_path).endswith(message)


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "One").touch()
    assert refusal(tmp_path) == "The names 'One' and 'one' differ in case only"


def test_short_names_are_unique() -> None:
    given = ["LONGFI~1.TXT", *(f"long file {number}.txt" for number in range(2000)), "日本", ".x"]
    short = names.short_names(given)
    assert short["LONGFI~1.TXT"] == b"LONGFI~1TXT"
    assert len(set(short.values())) == len(given)
    assert all(len(name) == 11 for name in short.values())


async def read_file(disk: Disk, content: bytes) -> bytes:
    """Read the only file of a FAT16 disk: its first cluster is number 2."""
    sectors = await disk.read(0, 512)
    fat_sectors = int.from_bytes(sectors[22:24], "little")
    start = (1 + 2 * fat_sectors + 32) * 512
    return (await disk.read(start, 2048))[: len(content)]


def test_files_that_change_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = b"the old text"
    file = tmp_path / "file"

    async def look(change: Any) -> bytes:
        file.unlink(missing_ok=True)
        file.write_bytes(old)
        async with opened(DirectoryFatDriver, {"directory": str(tmp_path)}) as disk:
            change()
            return await read_file(disk, old)

    def replace() -> None:
        (tmp_path / "other").write_bytes(b"another file")
        (tmp_path / "other").rename(file)

    def link() -> None:
        file.unlink()
        file.symlink_to("/etc/hostname")

    def grow() -> None:
        with file.open("ab") as stream:
            stream.write(b" and more")

    assert asyncio.run(look(grow)) == old
    assert asyncio.run(look(lambda: file.write_bytes(b"the NEW text"))) == b"the NEW text"
    for change, message in (
        (replace, "'file' has been replaced"),
        (lambda: os.truncate(file, 3), "'file' has become shorter"),
        (link, "Too many levels of symbolic links"),
        (file.unlink, "No such file"),
    ):
        caplog.clear()
        with pytest.raises(OSError, match=r"."):
            asyncio.run(look(change))
        assert message in caplog.text


def test_directories_that_become_links_are_not_followed(tmp_path: Path) -> None:
    shown, outside = tmp_path / "shown", tmp_path / "outside"
    (shown / "sub").mkdir(parents=True)
    (shown / "sub" / "file").write_bytes(b"inside")

    async def main() -> None:
        async with opened(DirectoryFatDriver, {"directory": str(shown)}) as disk:
            (shown / "sub").rename(outside)
            (shown / "sub").symlink_to(outside)
            sector = await disk.read(0, 512)
            start = (1 + 2 * int.from_bytes(sector[22:24], "little") + 32) * 512
            with pytest.raises(OSError, match=r"."):
                await disk.read(start + 2048, 512)

    asyncio.run(main())
