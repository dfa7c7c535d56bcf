# SPDX-License-Identifier: Apache-2.0
"""What a file looks like."""

from __future__ import annotations

import pytest

from vhostblk.block.formats import format_of, likely_format


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"", "raw"),
        (bytes(2048), "raw"),
        (b"QFI\xfb\0\0\0\1", "qcow"),
        (b"QFI\xfb\0\0\0\2", "qcow2"),
        (b"QFI", "raw"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0", "cloop"),
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (b"# Disk DescriptorFile\r\n\r\nversion=3\r\n", "vmdk"),
        (b"version=2\n", "vmdk"),
        (b"# Disk DescriptorFile\nversion=4\n", "raw"),
        (b"# Disk DescriptorFile\nCID=1\nversion=1\n", "raw"),
        (b"#!/bin/sh\n", "raw"),
    ],
)
def test_signatures_at_the_start(head: bytes, name: str) -> None:
    assert format_of(head) == name


def test_signatures_at_the_end() -> None:
    head, tail = bytes(2048), b"koly".ljust(512, b"\0")
    assert likely_format(head, tail) == "dmg"
    assert likely_format(head, b"conectix".ljust(512, b"\0")) == "vpc"
    assert likely_format(b"QED\0", tail) == "qed"
    assert likely_format(head, bytes(512)) == "raw"
