# SPDX-License-Identifier: Apache-2.0
"""Cases about `blklogwrites` and `blkverify`."""

from __future__ import annotations

import struct
from typing import Any

from tests.filters.debug_cases import GRAPH, NODES, all_kinds, rule
from tests.filters.harness import (
    Case,
    Step,
    add,
    delete,
    discard,
    export,
    file,
    flush,
    read,
    reopen,
    unexport,
    write,
    zero,
)

KIB = 1 << 10
MIB = 1 << 20


def super_block(
    entries: int, magic: int = 0x6A736677736872, version: int = 1, sector_size: int = 512
) -> bytes:
    return struct.pack("<QQQI", magic, version, entries, sector_size).ljust(sector_size, b"\0")


def entry(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QQQQ", sector, sectors, flags, 0).ljust(512, b"\0")


def logged(but: str = "", **members: Any) -> Step:
    """Add the node "w", which logs writes to "f" in "l"."""
    nodes = {"node_name": "w", "file": "f", "log": "l", "discard": "unmap"}
    return add(but, driver="blklogwrites", **{**nodes, **members})


FILES: dict[str, bytes | int] = {"disk": b"\x11" * MIB, "journal": 0}
SET_UP = [add(**file("f", "disk", discard="unmap")), add(**file("l", "journal"))]

WRITES = [
    write("e", 0, 4 * KIB, 0x22),
    write("e", 64 * KIB, 64 * KIB, 0x23, fua=True),
    zero("e", 8 * KIB, 4 * KIB),
    zero("e", 16 * KIB, 4 * KIB, unmap=True),
    flush("e"),
    flush("e"),
    discard("e", 32 * KIB, 8 * KIB),
    flush("e"),
    read("e", 0, 128 * KIB),
    flush("e"),
    write("e", 512, 512, 0x24),
]


def log_of_writes(name: str, *, above: bool = False, **members: Any) -> Case:
    """Write through "w", or a format on it."""
    formats = [add(driver="raw", node_name="r", file="w", discard="unmap")] if above else []
    where = "r" if above else "w"
    more = [write("e", 700, 300, 0x25), zero("e", 300, 9000)] if above else []
    return Case(
        name,
        FILES,
        [*SET_UP, logged(**members), *formats, export("e", where), *WRITES, *more, unexport("e")],
    )


def broken_log(name: str, log: bytes, but: str = "") -> Case:
    return Case(name, {"disk": 4096, "journal": log}, [*SET_UP, logged(but, log_append=True)])


LAST_FLUSH = (
    "QEMU flushes when a node is closed, vhostblk also when an export ends; here both fail."
)
PAST_END = "QEMU takes what is past the end of a log for entries of zeroes. vhostblk refuses."

CASES = [
    log_of_writes("log"),
    log_of_writes("log-large-sectors", above=True, log_sector_size=4096),
    log_of_writes("log-often", log_super_update_interval=1),
    log_of_writes("log-at-times", log_super_update_interval=3),
    log_of_writes("log-no-flush", cache={"no-flush": True}),
    Case(
        "log-append",
        FILES,
        [
            *SET_UP,
            logged(log_append=True),
            export("e", "w"),
            *WRITES,
            unexport("e"),
            delete("w"),
            logged(log_append=True),
            export("e", "w"),
            *WRITES,
            unexport("e"),
            delete("w"),
            logged(log_append=True, read_only=True),
            GRAPH,
        ],
    ),
    Case(
        "log-opening",
        FILES,
        [
            *SET_UP,
            *(logged(log_sector_size=size) for size in (0, 1, 16, 513, 1 << 24, 1 << 31)),
            logged(log_sector_size=1 << 32),
            logged(log_super_update_interval=0),
            logged(log_append=True, log_sector_size=512),
            add(driver="blklogwrites", node_name="w", file="f"),
            add(driver="blklogwrites", node_name="w", log="l"),
            logged(log="missing"),
            logged(file="missing"),
            logged(),
            NODES,
            GRAPH,
            export("e", "w"),
            delete("w"),
            delete("l"),
            add(driver="raw", node_name="r", file="l"),
            unexport("e"),
            reopen({"driver": "blklogwrites", "node-name": "w", "file": "f", "log": "l"}),
            delete("w"),
            logged(log_sector_size=4096),
            NODES,
            add(driver="raw", node_name="r", file="w"),
            NODES,
        ],
    ),
    Case(
        "log-of-failures",
        FILES,
        [
            *SET_UP,
            add(driver="blkdebug", node_name="d", image="f", inject_error=[rule("none")]),
            logged(file="d"),
            export("e", "w"),
            *all_kinds("e"),
            unexport("e"),
        ],
        files_but={"journal": LAST_FLUSH},
    ),
    Case(
        "log-failing",
        FILES,
        [
            *SET_UP,
            add(
                driver="blkdebug",
                node_name="d",
                image="l",
                inject_error=[rule("none", iotype="write", sector=9, errno=28)],
            ),
            logged(log="d"),
            export("e", "w"),
            *WRITES,
            unexport("e"),
        ],
    ),
    broken_log("log-without-magic", bytes(512)),
    broken_log("log-short", super_block(1)[:20]),
    broken_log("log-of-the-future", super_block(0, version=2)),
    broken_log("log-with-odd-sectors", super_block(0, sector_size=1000)),
    broken_log("log-with-flags", super_block(2) + entry(0, 1) + bytes(512) + entry(0, 0, 0x13)),
    broken_log("log-cut", super_block(2) + entry(0, 1), PAST_END),
    Case(
        "verify",
        {"disk": b"\x11" * MIB, "copy": b"\x11" * MIB},
        [
            add(**file("f", "disk", discard="unmap")),
            add(**file("c", "copy", discard="unmap")),
            add(driver="blkverify", node_name="v", raw="c", test="f", discard="unmap"),
            NODES,
            GRAPH,
            export("e", "v"),
            # Without write-zeroes requests, which make QEMU's daemon abort.
            *(step for step in [*all_kinds("e"), *WRITES] if step.what != "zero"),
            delete("c"),
            unexport("e"),
            reopen({"driver": "blkverify", "node-name": "v", "raw": "c", "test": "f"}),
            add(driver="raw", node_name="r", file="v"),
            NODES,
        ],
    ),
]
