# SPDX-License-Identifier: Apache-2.0
"""Commands refuse nodes that are in use, depending on the role, as QEMU's storage daemon does.

Two differences are not in these scripts. QEMU accepts any file as a new `file` of an image, and
keeps using the tables of the former file; vhostblk reads the new file, so it has to be an image.
And a data file that the image itself names need not be named again when the image is reopened.
"""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.qmp_block.support import Call, check_answers, ours

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20


def qemu_img(directory: Path, *words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, cwd=directory)


def add(driver: str, name: str, **members: Any) -> Call:
    wire = {key.replace("_", "-"): value for key, value in members.items()}
    return "blockdev-add", {"driver": driver, "node-name": name, **wire}


def file(directory: Path, name: str) -> Call:
    return add("file", f"{name}-file", filename=str(directory / name))


def reopen(*definitions: Call) -> Call:
    return "blockdev-reopen", {"options": [arguments for _, arguments in definitions]}


def reduced(answer: Any) -> Any:
    """Reduce a graph to the names that its edges join; return other answers unchanged."""
    graph = answer.get("return")
    if not isinstance(graph, dict) or "edges" not in graph:
        return answer
    # The block backends of QEMU's exports have no names.
    names = {
        node["id"]: node["name"] if node["type"] == "block-driver" else ""
        for node in graph["nodes"]
    }
    return sorted(
        [
            names[edge["parent"]],
            edge["name"],
            names[edge["child"]],
            edge["perm"],
            edge["shared-perm"],
        ]
        for edge in graph["edges"]
    )


def drivers(directory: Path) -> list[Call]:
    """Make images, and return calls that open one node of each driver that has children."""
    for name in ("a", "b", "c"):
        qemu_img(directory, "create", "-f", "qcow2", name, MIB)
    data = directory / "data"
    qemu_img(directory, "create", "-f", "qcow2", "-o", f"data_file={data}", "x", MIB)
    for name in ("r", "s", "log", "other"):
        (directory / name).write_bytes(bytes(MIB))
    images = ("a", "b", "c", "x", "data", "r", "s", "log", "other")
    return [
        *(file(directory, name) for name in images),
        ("object-add", {"qom-type": "throttle-group", "id": "g"}),
        *NODES,
    ]


NODES = [
    add("qcow2", "a", file="a-file"),
    add("qcow2", "b", file="b-file"),
    add("qcow2", "x", file="x-file", data_file="data-file"),
    add("blkdebug", "debug", image="r-file"),
    add("throttle", "throttle", file="r-file", throttle_group="g"),
    add("preallocate", "preallocate", file="r-file"),
    add("copy-on-read", "cor", file="s-file"),
    add("copy-before-write", "cbw", file="s-file", target="other-file"),
    add("snapshot-access", "snapshot", file="cbw"),
    add("compress", "compress", file="a"),
    add("blkverify", "verify", raw="r-file", test="s-file"),
    add("blklogwrites", "logged", file="r-file", log="log-file"),
    add("quorum", "quorum", children=["r-file", "s-file"], vote_threshold=1),
    add("raw", "raw", file="r-file"),
    add("raw", "inline", file={"driver": "null-co", "node-name": "null", "size": MIB}),
    add("blkdebug", "debugged", image={"driver": "null-co", "node-name": "null2"}),
]

INLINE = {"driver": "null-co", "size": MIB}


def _variants(name: str, role: str) -> list[Call]:
    """Return calls that reopen a node with other children in a role."""
    arguments = next(arguments for _, arguments in NODES if arguments["node-name"] == name)
    own = arguments[role]
    refs = [own, "s-file", "other-file", name, "nobody", INLINE, {**INLINE, "node-name": "n"}]
    return [reopen(("", {**arguments, role: ref})) for ref in refs if ref]


def replacements(directory: Path) -> list[Call]:
    roles = [
        (arguments["node-name"], role)
        for _, arguments in NODES
        for role in ("data-file", "image", "target", "log", "raw", "test", "file")
        if role in arguments and not (arguments["driver"] == "qcow2" and role == "file")
    ]
    return [
        *drivers(directory),
        *(call for each in roles for call in _variants(*each)),
        reopen(add("quorum", "quorum", children=["s-file", "r-file"], vote_threshold=1)),
        reopen(add("qcow2", "x", file="x-file")),
        reopen(add("qcow2", "x", file="x-file", data_file={"driver": "file", "filename": "/x"})),
        reopen(add("qcow2", "a", file="a-file", data_file="r-file")),
        reopen(add("qcow2", "a", file="a-file", data_file=INLINE)),
        reopen(add("qcow2", "a", file="b-file"), add("qcow2", "b", file="a-file")),
        reopen(add("qcow2", "a", file="a-file")),
        reopen(add("qcow2", "a", file="c-file")),
        reopen(add("qcow2", "a", file="data-file", backing="nobody")),
        reopen(add("qcow2", "a", file="nobody", backing="raw"), add("null-co", "nobody")),
        reopen(add("qcow2", "a", file="nobody", backing="nobody2")),
        reopen(add("raw", "a", file="nobody")),
        reopen(add("qcow2", "inline", file="null")),
        reopen(add("raw", "inline", file={**INLINE, "node-name": "null", "size": 512})),
        reopen(add("raw", "inline", file={"driver": "raw", "file": "r-file"})),
        reopen(add("blkdebug", "debugged", image={"driver": "null-co", "size": 512})),
        reopen(add("blkdebug", "debugged", image="null2", align=512)),
        reopen(add("blkdebug", "debugged", image="null", align=512)),
        ("x-debug-query-block-graph", {}),
    ]


def chain(directory: Path) -> list[Call]:
    """Return calls that open a chain of images, one of which is below two others."""
    for name in ("free", "spare"):
        qemu_img(directory, "create", "-f", "qcow2", name, MIB)
    qemu_img(directory, "create", "-f", "raw", "base", MIB)
    for name, below, kind in (
        ("middle", "base", "raw"),
        ("top", "middle", "qcow2"),
        ("side", "middle", "qcow2"),
    ):
        qemu_img(directory, "create", "-f", "qcow2", "-b", directory / below, "-F", kind, name)
    return [
        *(file(directory, name) for name in ("base", "middle", "top", "side", "free", "spare")),
        add("raw", "base", file="base-file"),
        add("qcow2", "middle", file="middle-file", backing="base"),
        add("qcow2", "top", file="top-file", backing="middle"),
        add("qcow2", "side", file="side-file", backing="middle"),
        add("qcow2", "free", file="free-file"),
        add("qcow2", "spare", file="spare-file"),
        add("raw", "above", file="top"),
        add("quorum", "quorum", children=["spare"], vote_threshold=1),
    ]


def export(name: str, directory: Path, *, writable: bool) -> Call:
    addr = {"type": "unix", "path": str(directory / f"{name}.sock")}
    members = {"type": "vhost-user-blk", "id": name, "node-name": name, "addr": addr}
    return "block-export-add", {**members, "writable": writable}


ALL = ("base", "middle", "top", "side", "free", "spare", "above", "quorum")


def changes(name: str, directory: Path) -> list[Call]:
    """Return commands that change a node, if they are allowed."""
    sync = {"snapshot-file": str(directory / f"new-{name}"), "snapshot-node-name": f"new-{name}"}
    return [
        ("blockdev-del", {"node-name": name}),
        ("blockdev-snapshot", {"node": name, "overlay": "free"}),
        ("blockdev-snapshot-sync", {"node-name": name, **sync}),
        ("blockdev-set-active", {"node-name": name, "active": False}),
        ("blockdev-set-active", {"node-name": name, "active": True}),
        ("block-dirty-bitmap-add", {"node": name, "name": "kept", "persistent": True}),
        ("block-dirty-bitmap-add", {"node": name, "name": "bitmap"}),
        ("block-dirty-bitmap-clear", {"node": name, "name": "bitmap"}),
        ("block-dirty-bitmap-remove", {"node": name, "name": "bitmap"}),
        ("x-blockdev-change", {"parent": name, "node": "free"}),
        ("x-blockdev-change", {"parent": name, "child": "backing"}),
        ("x-blockdev-change", {"parent": "quorum", "node": name}),
        ("block_resize", {"node-name": name, "size": 2 * MIB}),
        ("block_resize", {"node-name": name, "size": MIB // 2}),
        ("block_resize", {"node-name": name, "size": -1}),
    ]


def blockers(directory: Path) -> list[Call]:
    busy = [
        (command, arguments)
        for name in (
            "base",
            "middle",
            "base-file",
            "middle-file",
            "top-file",
            "spare",
            "spare-file",
        )
        for command, arguments in changes(name, directory)
    ]
    renames = [
        (
            "change-backing-file",
            {"device": device, "image-node-name": name, "backing-file": str(directory / "base")},
        )
        for device in ("base", "middle", "top", "side", "free", "above")
        for name in ("base", "middle", "top", "free")
    ]
    return [
        *chain(directory),
        *busy,
        *renames,
        *(
            (f"blockdev-snapshot-{kind}internal-sync", {"device": name, "name": "s"})
            for kind in ("", "delete-")
            for name in ("base", "middle", "top", "spare", "free")
        ),
        *(add("qcow2", "second", file=f"{name}-file", backing=None) for name in ("top", "free")),
        export("above", directory, writable=True),
        *(export(name, directory, writable=True) for name in ("middle", "base-file")),
        ("blockdev-snapshot-internal-sync", {"device": "top", "name": "s"}),
        reopen(add("qcow2", "top", file="free-file", backing="middle")),
        ("x-debug-query-block-graph", {}),
    ]


def inactive(directory: Path) -> list[Call]:
    """Return commands on inactive images, which another process may use by now."""
    return [
        *chain(directory),
        ("blockdev-set-active", {"active": False}),
        ("blockdev-snapshot-internal-sync", {"device": "free", "name": "s"}),
        ("block_resize", {"node-name": "free", "size": 2 * MIB}),
        ("blockdev-snapshot", {"node": "side", "overlay": "free"}),
        reopen(add("qcow2", "spare", file="spare-file", read_only=True)),
        reopen(add("qcow2", "top", file="top-file", backing=None)),
        export("spare", directory, writable=False),
    ]


@pytest.mark.parametrize("script", [replacements, blockers, inactive])
def test_answers_are_those_of_qemu(tmp_path: Path, script: Callable[[Path], list[Call]]) -> None:
    check_answers(tmp_path, script, reduced)


def test_an_inactive_image_is_not_repaired(tmp_path: Path) -> None:
    qemu_img(tmp_path, "create", "-f", "qcow2", "free", MIB)
    calls: list[Call] = [
        file(tmp_path, "free"),
        add("qcow2", "free", file="free-file"),
        ("blockdev-set-active", {"node-name": "free", "active": False}),
        ("x-vhostblk-blockdev-check", {"node-name": "free", "repair": True}),
    ]
    answer = asyncio.run(ours(calls))[-1]
    assert answer == {"class": "GenericError", "desc": "Node 'free' is inactive"}
