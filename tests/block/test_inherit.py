# SPDX-License-Identifier: Apache-2.0
"""What an inline child takes over from its parent; the refusals are held against QEMU's daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.block.support import RW, run
from tests.schema.qemu import message, needs_qemu
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.inherit import BACKING, resolve, resolve_child
from vhostblk.schema.base import UNSET
from vhostblk.schema.blockdev import BlockdevCacheOptions
from vhostblk.schema.drivers.null import BlockdevOptionsNull
from vhostblk.schema.options import blockdev_options

if TYPE_CHECKING:
    from pathlib import Path


def common(node: object) -> dict[str, object]:
    """Return a node's common options, as its driver sees them."""
    options = node.options  # type: ignore[attr-defined]
    return {
        "read-only": options.read_only,
        "auto-read-only": options.auto_read_only,
        "force-share": options.force_share,
        "direct": options.cache.direct,
        "no-flush": options.cache.no_flush,
        "discard": options.discard.value,
        "detect-zeroes": options.detect_zeroes.value,
    }


PLAIN = {
    "read-only": False,
    "auto-read-only": False,
    "force-share": False,
    "direct": False,
    "no-flush": False,
    "discard": "ignore",
    "detect-zeroes": "off",
}
CHILD = {**PLAIN, "discard": "unmap"}

INHERITED = [
    ("", CHILD),
    ("read-only=on", {**CHILD, "read-only": True}),
    ("read-only=on,file.read-only=off", CHILD),
    ("file.read-only=on", {**CHILD, "read-only": True}),
    ("auto-read-only=on", {**CHILD, "auto-read-only": True}),
    ("auto-read-only=on,file.auto-read-only=off", CHILD),
    ("read-only=on,force-share=on", {**CHILD, "read-only": True, "force-share": True}),
    ("read-only=on,force-share=on,file.force-share=off", {**CHILD, "read-only": True}),
    ("cache.direct=on", {**CHILD, "direct": True}),
    ("cache.direct=on,file.cache.direct=off", CHILD),
    ("cache.direct=on,file.cache.no-flush=on", {**CHILD, "direct": True, "no-flush": True}),
    ("cache.no-flush=on,file.cache.no-flush=off", CHILD),
    ("discard=ignore", CHILD),
    ("discard=unmap", CHILD),
    ("discard=unmap,file.discard=ignore", PLAIN),
    ("discard=unmap,detect-zeroes=unmap", CHILD),
    ("file.detect-zeroes=unmap", {**CHILD, "detect-zeroes": "unmap"}),
]


@pytest.mark.parametrize(("text", "expected"), INHERITED)
def test_an_inline_child(text: str, expected: dict[str, object]) -> None:
    async def main() -> None:
        graph = Graph()
        parent = await graph.add(
            blockdev_options(f"raw,node-name=r,file.driver=null-co,{text}".rstrip(","))
        )
        assert common(parent.children["file"].node) == expected
        await graph.close()

    run(main)


def test_a_node_of_its_own_gets_defaults() -> None:
    async def main() -> None:
        graph = Graph()
        node = await graph.add(blockdev_options("null-co,node-name=n"))
        assert common(node) == PLAIN
        parent = await graph.add(
            blockdev_options("raw,node-name=r,file=n,cache.no-flush=on,discard=unmap")
        )
        assert common(node) == PLAIN
        assert common(parent) == {**PLAIN, "no-flush": True, "discard": "unmap"}
        await graph.close()

    run(main)


def test_two_levels() -> None:
    async def main() -> None:
        graph = Graph()
        text = "raw,node-name=r,cache.no-flush=on,file.driver=raw,file.file.driver=null-co"
        node = await graph.add(blockdev_options(text))
        below = node.children["file"].node.children["file"].node
        assert common(below) == {**CHILD, "no-flush": True}
        await graph.close()

    run(main)


def test_what_lies_below_a_copy_on_write_image_is_read_only() -> None:
    parent = resolve(
        BlockdevOptionsNull(auto_read_only=True, cache=BlockdevCacheOptions(direct=True))
    )
    below = resolve_child(BlockdevOptionsNull(), BACKING, parent)
    assert (below.read_only, below.auto_read_only, below.cache.direct) == (True, False, True)
    assert resolve_child(BlockdevOptionsNull(read_only=False), BACKING, parent).read_only is False


def test_children_of_inactive_nodes_are_inactive() -> None:
    root = resolve(BlockdevOptionsNull(node_name="n", active=False))
    backing = resolve_child(BlockdevOptionsNull(), BACKING, root)
    assert not backing.active
    assert not resolve_child(BlockdevOptionsNull(active=True), BACKING, root).active
    assert not resolve_child(BlockdevOptionsNull(), "file", backing).active
    assert resolve_child(BlockdevOptionsNull(), "file", root).active
    assert resolve_child(BlockdevOptionsNull(), "file", resolve(BlockdevOptionsNull())).active


def test_nothing_is_left_open() -> None:
    for options in (
        resolve(BlockdevOptionsNull()),
        resolve_child(BlockdevOptionsNull(), "file", resolve(BlockdevOptionsNull())),
    ):
        for name in ("read_only", "auto_read_only", "force_share", "discard"):
            assert getattr(options, name) is not UNSET
        assert options.cache == BlockdevCacheOptions(direct=False, no_flush=False)


_FORCE_SHARE = "force-share=on can only be used with read-only images"
_DETECT = "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"

#: Options in which only what is inherited decides whether QEMU takes them.
AS_QEMU = [
    ("file.detect-zeroes=unmap", None),
    ("discard=ignore,file.detect-zeroes=unmap", None),
    ("detect-zeroes=unmap", _DETECT),
    ("discard=unmap,file.discard=ignore,file.detect-zeroes=unmap", _DETECT),
    ("read-only=on,file.force-share=on", None),
    ("file.force-share=on", _FORCE_SHARE),
    ("read-only=on,force-share=on,file.read-only=off", _FORCE_SHARE),
    ("read-only=on,force-share=on,file.read-only=off,file.force-share=off", None),
    ("cache.direct=on,file.aio=native", None),
    ("cache.direct=on,file.cache.no-flush=on,file.aio=native", None),
    (
        "cache.direct=on,file.cache.direct=off,file.aio=native",
        "aio=native was specified, but it requires cache.direct=on, which was not specified.",
    ),
]


def _text(path: Path, members: str) -> str:
    return f"raw,node-name=r,file.driver=file,file.filename={path},{members}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("no O_DIRECT here")
    return path


@pytest.mark.parametrize(("members", "reason"), AS_QEMU)
def test_refusals(image: Path, members: str, reason: str | None) -> None:
    async def main() -> None:
        graph = Graph()
        options = blockdev_options(_text(image, members))
        if reason is None:
            await graph.add(options)
        else:
            with pytest.raises(BlockError) as caught:
                await graph.add(options)
            assert str(caught.value) == reason
        await graph.close()

    run(main)


@needs_qemu
@pytest.mark.parametrize(("members", "reason"), AS_QEMU)
def test_qemu_says_the_same(image: Path, members: str, reason: str | None) -> None:
    assert message("blockdev", _text(image, members)) == reason


READ_ONLY = [
    ("file.read-only=on", True),
    ("read-only=on,file.read-only=off", True),
    ("file.read-only=off", False),
]


@needs_qemu
@pytest.mark.parametrize(("members", "refused"), READ_ONLY)
def test_qemu_exports_what_we_export(image: Path, members: str, refused: bool) -> None:
    socket = image.with_name("v.sock")
    export = f"vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path={socket},writable=on"
    said = message("export", export, "--blockdev", _text(image, members))
    assert (said is not None) == refused


@pytest.mark.parametrize(("members", "refused"), READ_ONLY)
def test_writers_are_refused_where_qemu_does(image: Path, members: str, refused: bool) -> None:
    async def main() -> None:
        graph = Graph()
        node = await graph.add(blockdev_options(_text(image, members)))
        backend = BlockBackend("test", RW)
        if refused:
            with pytest.raises(BlockError, match="Block node is read-only"):
                backend.attach(graph, node)
        else:
            backend.attach(graph, node)
        await backend.detach()
        await graph.close()

    run(main)
