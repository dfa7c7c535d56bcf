# SPDX-License-Identifier: Apache-2.0
"""A rewritten header keeps all that QEMU keeps: unknown fields and extensions, names, features."""

from __future__ import annotations

import json
import random
import shutil
import struct
from typing import TYPE_CHECKING

import pytest

from integration.qcow2.tools import opened, qemu_img, qemu_img_status, qemu_io, run
from vhostblk.block.drivers.qcow2 import header as header_module
from vhostblk.block.drivers.qcow2.node import Qcow2Node

if TYPE_CHECKING:
    from pathlib import Path

    from vhostblk.block.drivers.qcow2.header import Header

SIZE = 1 << 20
#: Length of the header's structure, with the compression type.
LENGTH = 112
FORMS = [
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=64k",
    "cluster_size=64k,compression_type=zstd",
    "extended_l2=on,lazy_refcounts=on",
]


def _strange(path: Path, fields: bytes, extensions: list[tuple[int, bytes]], name: bytes) -> None:
    """Give an image a header such as a future program may write."""
    data = bytearray(path.read_bytes())
    version, bits = struct.unpack_from(">I", data, 4)[0], struct.unpack_from(">I", data, 20)[0]
    head = bytearray(data[: LENGTH if version == 3 else 72])
    if version == 3:
        struct.pack_into(">I", head, 100, LENGTH + len(fields))
        struct.pack_into(
            ">Q", head, 88, 1 << 40
        )  # an autoclear feature, which the first writer clears
        head += fields
    for magic, content in extensions:
        head += struct.pack(">II", magic, len(content)) + content + bytes(-len(content) % 8)
    head += bytes(8)
    struct.pack_into(">QI", head, 8, len(head) if name else 0, len(name))
    head += name
    assert len(head) <= 1 << bits
    data[: 1 << bits] = head.ljust(1 << bits, b"\0")
    path.write_bytes(data)


def _parsed(path: Path) -> Header:
    return header_module.parse(path.read_bytes()[: 2 << 20].ljust(2 << 20, b"\0"))


def _backing_name(path: Path) -> str | None:
    info: dict[str, str] = json.loads(qemu_img("info", "-U", "--output=json", path))
    return info.get("backing-filename")


@pytest.mark.parametrize("form", FORMS)
def test_a_header_that_is_written_anew_keeps_what_qemu_keeps(tmp_path: Path, form: str) -> None:
    rng = random.Random(form)
    for number in range(8):
        path, other = tmp_path / f"{number}.qcow2", tmp_path / f"{number}.other"
        qemu_img("create", "-q", "-f", "qcow2", "-o", form, path, SIZE)
        fields = rng.randbytes(rng.choice([0, 1, 8, 100]))
        extensions = [
            (rng.randrange(1, 1 << 32), rng.randbytes(rng.choice([0, 5, 16, 40])))
            for _ in range(rng.randrange(3))
        ]
        _strange(path, fields, extensions, rng.choice([b"", b"/some/where/base.img"]))
        shutil.copy(path, other)
        name = "/" + "n" * rng.choice([1, 60, 90, 200, 300, 1022])
        status, text = qemu_img_status(
            "rebase", "-u", "-f", "qcow2", "-b", name, "-F", "raw", other
        )

        async def rename(path: Path = path, name: str = name) -> str | None:
            async with opened(path, backing=None) as (node, _):
                assert isinstance(node, Qcow2Node)
                try:
                    await node.change_backing_file(name, "raw")
                except OSError as error:
                    return error.strerror
                return None

        failed = run(rename())
        assert (failed is not None) == (status != 0), (text, failed)
        if failed is not None:
            assert failed == "No space left on device"
            assert "No space left in the file header" in text
        # QEMU reverses the order of unknown extensions each time that it writes them.
        ours, theirs = _parsed(path), _parsed(other)
        assert sorted(ours.unknown_extensions) == sorted(theirs.unknown_extensions)
        assert sorted(ours.unknown_extensions) == sorted(extensions)
        ours.unknown_extensions = theirs.unknown_extensions = []
        assert ours == theirs
        assert ours.autoclear == 0
        assert ours.unknown_fields == (b"" if "0.10" in form else fields)
        if failed is None:
            assert _backing_name(path) == name
        else:
            assert _backing_name(path) == _backing_name(other)


def test_features_that_nobody_knows_are_cleared_by_whoever_writes(tmp_path: Path) -> None:
    path, other = tmp_path / "disk.qcow2", tmp_path / "other.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, SIZE)
    _strange(path, b"f" * 24, [(0x12345678, b"kept")], b"")
    shutil.copy(path, other)

    async def main() -> None:
        async with opened(path, backing=None):
            pass

    run(main())
    qemu_io(other, "flush")
    assert _parsed(path) == _parsed(other)
    assert path.read_bytes()[:LENGTH] == other.read_bytes()[:LENGTH]
