# SPDX-License-Identifier: Apache-2.0
"""The node that a file name stands for, with a driver named in the image and without."""

from __future__ import annotations

from typing import Any

import pytest

from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filename import described, full_name

FILE = {"driver": "file", "filename": "a"}


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("a", None, FILE),
        ("a", "file", FILE),
        ("file:a", "file", FILE),
        ("a", "raw", {"driver": "raw", "file": FILE}),
        ("a", "host_device", {"driver": "host_device", "filename": "a"}),
        ("nope:a", "file", {"driver": "file", "filename": "nope:a"}),
        ("null-co://", None, {"driver": "null-co"}),
        ("null-co://", "raw", {"driver": "raw", "file": {"driver": "null-co"}}),
        ("blkdebug::a", "blkdebug", {"driver": "blkdebug", "image": FILE}),
        ("blkdebug:c:a", None, {"driver": "blkdebug", "image": FILE, "config": "c"}),
        ("a", "blkdebug", {"driver": "blkdebug", "image": FILE}),
        ("blkverify:a:a", None, {"driver": "blkverify", "raw": FILE, "test": {"file": FILE}}),
        ('json:{"driver": "file", "filename": "a"}', "file", FILE),
        ('json:{"driver": "qcow2", "file.driver": "file"}', "raw",
         {"driver": "raw", "file": {"driver": "file"}}),
    ],
)  # fmt: skip
def test_names_lead_to_nodes(name: str, kind: str | None, options: dict[str, Any]) -> None:
    assert described(name, kind) == options


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("null-co://x", None, "The only allowed filename for this driver is 'null-co://'"),
        ("a", "null-aio", "The only allowed filename for this driver is 'null-aio://'"),
        ("blkdebug:a", None, "blkdebug requires both config file and image path"),
        ("blkverify:a", None, "blkverify requires raw copy and original image path"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name: str, kind: str | None, text: str) -> None:
    with pytest.raises(BlockError, match=text):
        described(name, kind)


def test_only_files_have_names_of_any_form() -> None:
    assert full_name("nope:a", "/d/image", "file") == "nope:a"
    assert full_name("null-co://", "/d/image") == "null-co://"
    assert full_name("file:a", "/d/image") == "/d/a"
    with pytest.raises(BlockError, match="Unknown protocol 'nope'"):
        full_name("nope:a", "/d/image", "raw")
