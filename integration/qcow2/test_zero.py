# SPDX-License-Identifier: Apache-2.0
"""Zeroes written to parts of clusters: what images say of them is what QEMU has them say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from integration.qcow2.tools import (
    check,
    content,
    opened,
    qemu_img,
    qemu_io,
    read,
    run,
    sectors_by_qemu,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (1 << 20) + 1536
FORMS = [
    "cluster_size=64k",
    "extended_l2=on,cluster_size=64k",
    "extended_l2=on,cluster_size=64k,preallocation=metadata",
    "compat=0.10",
]
#: What is zeroed, and what was written before: offset and length.
ZEROED = [(512, 512), (70_000 // 512 * 512, 60_000 // 512 * 512), (SIZE - 512, 512)]
WRITTEN = [(130 * 1024, 4096), (300 * 1024, 512)]
ZEROED_BESIDE_DATA = [(128 * 1024, 512), (300 * 1024, 1024), (310 * 1024, 512)]


async def _ours(path: Path, *, alone: bool) -> None:
    members: dict[str, Any] = {"backing": None} if alone else {}
    async with opened(path, **members) as (_, backend):
        for offset, length in WRITTEN:
            await write(backend, offset, b"w" * length)
        for offset, length in ZEROED + ZEROED_BESIDE_DATA:
            await backend.pwrite_zeroes(offset, length)


def _qemus(path: Path, *, alone: bool) -> None:
    commands = [f"write -q -P {ord('w')} {offset} {length}" for offset, length in WRITTEN]
    commands += [f"write -q -z {offset} {length}" for offset, length in ZEROED + ZEROED_BESIDE_DATA]
    backing = "backing=," if alone else ""
    qemu_io(path, *commands, options=f"driver=qcow2,{backing}file.driver=file,file.filename={path}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backing", ["none", "left out", "zeroes", "data"])
def test_zeroes_in_parts_of_clusters(tmp_path: Path, form: str, backing: str) -> None:
    """Left out, a backing file would show through what is only not allocated."""
    # There QEMU copies what lies below to one subcluster more or less; the content is the same.
    maps_differ = "preallocation" in form and backing == "data"
    sides = []
    for name in ("ours", "qemus"):
        directory = tmp_path / name
        directory.mkdir()
        path, words = directory / "disk", ["-f", "qcow2", "-o", form]
        if backing != "none":
            base = directory / "base"
            base.write_bytes((b"\0" if backing == "zeroes" else b"b") * SIZE)
            words += ["-b", str(base), "-F", "raw"]
        qemu_img("create", "-q", *words, path, SIZE)
        if name == "ours":
            run(_ours(path, alone=backing == "left out"))
        else:
            _qemus(path, alone=backing == "left out")
        check(path)
        # Of data QEMU also says where the file has a hole.
        kinds = [(data, data or zero, where is None) for data, zero, where in sectors_by_qemu(path)]
        sides.append((content(path, directory / "raw"), [] if maps_differ else kinds))
    assert sides[0] == sides[1]


@pytest.mark.parametrize("zeroes", [True, False])
def test_what_is_written_hides_nothing_that_the_backing_file_has_further_on(
    tmp_path: Path, zeroes: bool
) -> None:
    """There it has a hole, with data behind it in the same cluster."""
    path, base, expected = tmp_path / "disk", tmp_path / "base", bytearray(SIZE)
    expected[32 << 10 : 40 << 10] = b"b" * (8 << 10)
    with base.open("wb") as file:
        file.truncate(SIZE)
        file.seek(32 << 10)
        file.write(b"b" * (8 << 10))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path, SIZE)

    async def main() -> None:
        async with opened(path) as (_, backend):
            if zeroes:
                await backend.pwrite_zeroes(512, 512)
            else:
                await write(backend, 512, b"w" * 512)
                expected[512:1024] = b"w" * 512
            assert await read(backend, 0, SIZE) == expected

    run(main())
    check(path)
    assert content(path, tmp_path / "raw") == expected
