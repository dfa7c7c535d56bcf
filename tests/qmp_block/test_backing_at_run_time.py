# SPDX-License-Identifier: Apache-2.0
"""`blockdev-reopen` gives images another backing image, or none, as QEMU's storage daemon does."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING, Any

from tests.block.support import RW, read_bytes, write_bytes
from tests.qmp_block.support import Call, check_answers, execute
from tests.qmp_block.test_overlay import add
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path

NODES: Call = ("query-named-block-nodes", {"flat": True})


def options(name: str, **members: Any) -> dict[str, Any]:
    return {"driver": "qcow2", "node-name": name, "file": f"{name}-file", **members}


def reopen(*definitions: dict[str, Any]) -> Call:
    return "blockdev-reopen", {"options": list(definitions)}


def script(directory: Path) -> list[Call]:
    """Make images, and return calls that use them."""

    def create(name: str, *words: object) -> None:
        subprocess.run(["qemu-img", "create", "-q", *map(str, words)], check=True, cwd=directory)

    create("base", "-f", "raw", "base", "1M")
    create("third", "-f", "raw", "third", "2M")
    for name in ("lone", "other"):
        create(name, "-f", "qcow2", name, "1M")
    for name in ("top", "bare"):
        create(name, "-f", "qcow2", "-b", directory / "base", "-F", "raw", name)
    rename = {"device": "top", "image-node-name": "top", "backing-file": f"{directory}/third"}
    files: list[dict[str, Any]] = [
        {"driver": "file", "node-name": f"{name}-file", "filename": f"{directory}/{name}"}
        for name in ("base", "third", "lone", "other", "top", "bare")
    ]
    raw: list[dict[str, Any]] = [
        {"driver": "raw", "node-name": name, "file": f"{name}-file", "read-only": True}
        for name in ("base", "third")
    ]
    images = [options("lone"), options("other"), options("top"), options("bare", backing=None)]
    inline = {"driver": "raw", "file": "base-file"}
    added: list[Call] = [("blockdev-add", each) for each in (*files, *raw, *images)]
    return [
        *added,
        NODES,
        reopen(options("top")),
        reopen(options("bare")),
        reopen(options("bare", backing=None)),
        reopen(options("top", backing=None)),
        NODES,
        reopen(options("top")),
        ("change-backing-file", rename),
        *(
            reopen(options("top", backing=backing))
            for backing in (None, "base", "third", "top", "top-file", "other")
        ),
        NODES,
        *(reopen(options("top", backing=backing)) for backing in ("", "nobody", inline)),
        NODES,
        reopen(options("top", backing=None)),
        reopen(options("lone")),
        *(
            reopen(options("lone", backing=backing))
            for backing in (None, inline, "", "nobody", "base")
        ),
        NODES,
        reopen(options("lone")),
        reopen(options("lone", backing=None)),
        reopen(options("top", backing="base")),
        ("change-backing-file", rename),
        NODES,
        ("blockdev-del", {"node-name": "base"}),
        reopen(options("top", backing=None), options("lone", backing="nobody")),
        NODES,
        reopen(options("top", backing=None)),
        ("blockdev-del", {"node-name": "base"}),
        reopen(options("lone", backing="top"), options("top", backing="third")),
        NODES,
        reopen(options("lone", backing=None), options("top", backing="lone")),
        reopen(options("lone", backing="top")),
        NODES,
    ]


def reduced(answer: Any) -> Any:
    """Leave what an answer says of images and what they lie on."""
    if not isinstance(answer.get("return"), list):
        return answer
    return [
        (
            node["node-name"],
            node["ro"],
            node.get("backing_file"),
            *(
                node["image"].get(member)
                for member in (
                    "backing-filename",
                    "full-backing-filename",
                    "backing-filename-format",
                )
            ),
        )
        for node in answer["return"]
        if node["drv"] == "qcow2"
    ]


def test_answers_are_those_of_qemu(tmp_path: Path) -> None:
    check_answers(tmp_path, script, reduced)


def test_what_is_read_changes_with_the_backing_image(tmp_path: Path) -> None:
    async def main() -> None:
        async with Daemon() as daemon:
            graph = daemon.graph

            async def put_on(backing: str | None, other: str | None = "") -> Any:
                definitions: list[dict[str, Any]] = []
                for name, below in (("disk", backing), ("second", other)):
                    if below != "":
                        file = {"driver": "file", "filename": str(tmp_path / name)}
                        definition = {"driver": "qcow2", "node-name": name, "file": file}
                        definitions.append({**definition, "backing": below})
                return await execute(daemon, "blockdev-reopen", {"options": definitions})

            for name in ("base", "disk", "second"):
                await add(daemon, tmp_path / name, **({} if name == "base" else {"backing": None}))
            base = BlockBackend("base", RW)
            base.attach(graph, graph.find("base"))
            await write_bytes(base, 0, b"a" * 200_000)
            await base.detach()
            user = BlockBackend("user", RW)
            user.attach(graph, graph.find("disk"))
            await write_bytes(user, 65536, b"b" * 65536)
            alone = bytes(65536) + b"b" * 65536 + bytes(65536)
            together = b"a" * 65536 + b"b" * 65536 + b"a" * 65536
            assert await read_bytes(user, 0, 3 << 16) == alone
            assert "return" in await put_on("base")
            assert await read_bytes(user, 0, 3 << 16) == together
            assert "desc" in await put_on(None, "nobody")
            assert await read_bytes(user, 0, 3 << 16) == together
            await write_bytes(user, 100, b"c" * 100)
            assert "return" in await put_on(None)
            assert await read_bytes(user, 0, 300) == b"a" * 100 + b"c" * 100 + b"a" * 100
            assert await read_bytes(user, 2 << 16, 65536) == bytes(65536)
            assert "desc" in await put_on("base", "nobody")
            assert await read_bytes(user, 2 << 16, 65536) == bytes(65536)
            assert not graph.find("base").parents
            await user.detach()

    asyncio.run(main())
