# SPDX-License-Identifier: Apache-2.0
"""What `tests.filters.harness` runs on both daemons."""

from __future__ import annotations

from typing import Any

from tests.filters.harness import (
    Case,
    add,
    delete,
    discard,
    export,
    file,
    flush,
    qmp,
    read,
    reopen,
    status,
    unexport,
    vhost_user,
    write,
    zero,
)

KIB = 1 << 10
MIB = 1 << 20

#: The harness itself, on a graph without filters.
PLAIN = Case(
    "plain",
    {"disk": b"\x11" * MIB},
    [
        add(**file("f", "disk", discard="unmap")),
        add(driver="raw", node_name="r", file="f", discard="unmap"),
        export("e", "r"),
        write("e", 4 * KIB, 8 * KIB, 0x22),
        read("e", 0, 16 * KIB),
        write("e", 100 * KIB, 4 * KIB, 0x33, fua=True),
        zero("e", 200 * KIB, 4 * KIB, unmap=True),
        discard("e", 300 * KIB, 8 * KIB),
        flush("e"),
        status("e", 0, MIB),
        reopen({"driver": "raw", "node_name": "r", "file": "f"}),
        delete("r"),
        unexport("e"),
        export("e", "r", writable=False),
        read("e", 4 * KIB, 512),
        unexport("e"),
        delete("r"),
    ],
)

NODES = qmp("query-named-block-nodes")
FLAT_NODES = qmp("query-named-block-nodes", {"flat": True})
GRAPH = qmp("x-debug-query-block-graph")

COMPRESS = Case(
    "compress",
    {"disk": 64 * KIB},
    [
        add(**file("f", "disk")),
        add(driver="raw", node_name="r", file="f"),
        add(driver="compress", node_name="c", file="r"),
        add(driver="compress", node_name="c", file="f"),
        add(driver="compress", node_name="c"),
        add(driver="compress", node_name="c", file="x"),
    ],
)

COPY_ON_READ = Case(
    "copy-on-read",
    {"disk": b"\x11" * MIB, "other": MIB},
    [
        add(**file("f", "disk", discard="unmap")),
        add(**file("o", "other", read_only=True)),
        add(driver="copy-on-read", node_name="c", file="f", discard="unmap"),
        add(driver="copy-on-read", node_name="d", file="o"),
        add(driver="copy-on-read", node_name="d", file="o", read_only=True),
        add(driver="copy-on-read", node_name="d", file="f", bottom="x"),
        add(driver="copy-on-read", node_name="d", file="f", bottom="c"),
        NODES,
        export("e", "c"),
        write("e", 4 * KIB, 8 * KIB, 0x22),
        read("e", 1, 16 * KIB),
        zero("e", 200 * KIB, 4 * KIB, unmap=True),
        discard("e", 300 * KIB, 8 * KIB),
        flush("e"),
        status("e", 0, MIB),
        reopen({"driver": "copy-on-read", "node_name": "c", "file": "f"}),
        delete("c"),
        delete("f"),
        unexport("e"),
        delete("c"),
        delete("f"),
    ],
)

CBW = {"driver": "copy-before-write", "node_name": "c", "file": "f", "target": "t"}
FLEECING = [
    add(**file("f", "disk", discard="unmap")),
    add(**file("t", "target", discard="unmap")),
    add(**CBW, discard="unmap"),
    add(driver="snapshot-access", node_name="s", file="c", discard="unmap"),
]
FILES: dict[str, bytes | int] = {"disk": b"\x11" * MIB, "target": MIB}

COPY_BEFORE_WRITE = Case(
    "copy-before-write",
    FILES,
    [
        *FLEECING,
        NODES,
        FLAT_NODES,
        export("e", "c"),
        export("s", "s"),
        write("e", 4 * KIB, 8 * KIB, 0x22),
        write("e", 60 * KIB, 8 * KIB, 0x22),
        read("s", 0, 256 * KIB),
        read("e", 0, 256 * KIB),
        zero("e", 200 * KIB, 4 * KIB, unmap=True),
        discard("e", 300 * KIB, 8 * KIB),
        write("e", MIB - 512, 512, 0x33, fua=True),
        flush("e"),
        status("e", 0, MIB),
        status("s", 0, MIB),
        read("s", 0, MIB),
        read("s", 100, 600 * KIB + 7),
        write("s", 0, 4 * KIB, 0x44),
        zero("s", 0, 4 * KIB),
        flush("s"),
        read("s", 0, 256 * KIB),
        # Given up: whole clusters only.
        discard("s", 64 * KIB, 100 * KIB),
        read("s", 0, 64 * KIB),
        read("s", 64 * KIB, 512),
        read("s", 0, 64 * KIB + 1),
        status("s", 64 * KIB, 64 * KIB),
        read("s", 128 * KIB, 64 * KIB),
        write("e", 0, MIB, 0x55),
        read("s", 128 * KIB, MIB - 128 * KIB),
        read("e", 0, MIB),
        reopen({**CBW}),
        delete("t"),
        unexport("s"),
        unexport("e"),
        delete("c"),
        delete("s"),
        delete("c"),
        delete("t"),
        delete("f"),
    ],
)

CBW_OPTIONS = Case(
    "copy-before-write-options",
    {**FILES, "small": 1024},
    [
        add(**file("f", "disk")),
        add(**file("t", "target")),
        add(**file("ro", "small", read_only=True)),
        add(driver="copy-before-write", node_name="c", file="f"),
        add(**{**CBW, "target": "ro"}),
        add(**{**CBW, "target": "x"}),
        add(**CBW, min_cluster_size=3),
        add(**CBW, min_cluster_size=1 << 63),
        add(**CBW, on_cbw_error="x"),
        add(**CBW, cbw_timeout=-1),
        add(**CBW, min_cluster_size=256 * KIB, on_cbw_error="break-snapshot", cbw_timeout=30),
        add(driver="snapshot-access", node_name="s", file="c", read_only=True),
        export("e", "c"),
        export("s", "s", writable=False),
        write("e", 300 * KIB, 512, 0x22),
        read("s", 0, MIB),
        # Twice on one node.
        add(**{**CBW, "node_name": "c2"}),
        export("w", "f"),
        delete("f"),
    ],
)

CBW_BITMAP = Case(
    "copy-before-write-bitmap",
    {**FILES, "small": 64 * KIB},
    [
        add(**file("f", "disk")),
        add(**file("t", "target")),
        add(**file("o", "small")),
        qmp("block-dirty-bitmap-add", {"node": "f", "name": "b", "granularity": 32 * KIB}),
        qmp("block-dirty-bitmap-add", {"node": "o", "name": "other"}),
        export("e", "f"),
        write("e", 100 * KIB, 512, 0x22),
        write("e", 400 * KIB, 200 * KIB, 0x33),
        unexport("e"),
        add(**CBW, bitmap={"node": "x", "name": "b"}),
        add(**CBW, bitmap={"node": "f", "name": "x"}),
        add(**CBW, bitmap={"node": "o", "name": "other"}),
        add(**CBW, bitmap={"node": "f", "name": "b"}),
        add(driver="snapshot-access", node_name="s", file="c", read_only=True),
        export("e", "c"),
        export("s", "s", writable=False),
        write("e", 0, MIB, 0x44),
        read("s", 0, 512),
        read("s", 64 * KIB, 64 * KIB),
        read("s", 128 * KIB, 512),
        read("s", 384 * KIB, 192 * KIB),
        read("s", 384 * KIB, 256 * KIB),
        read("s", 640 * KIB, 512),
        status("s", 64 * KIB, 64 * KIB),
        status("s", 0, MIB),
        read("e", 0, MIB),
        qmp("block-dirty-bitmap-remove", {"node": "f", "name": "b"}),
    ],
)

CBW_PERMISSIONS = Case(
    "copy-before-write-permissions",
    FILES,
    [
        *FLEECING,
        GRAPH,
        vhost_user("e", "c"),
        vhost_user("s", "s"),
        GRAPH,
        vhost_user("w", "f"),
        vhost_user("r", "f", writable=False),
        vhost_user("t", "t"),
        qmp("block_resize", {"node-name": "t", "size": 2 * MIB}),
        qmp("block_resize", {"node-name": "f", "size": 2 * MIB}),
        GRAPH,
    ],
)

COR_PERMISSIONS = Case(
    "copy-on-read-permissions",
    {"disk": MIB},
    [
        add(**file("f", "disk")),
        add(driver="raw", node_name="r", file="f"),
        add(driver="copy-on-read", node_name="c", file="r"),
        GRAPH,
        # (Not later: QEMU dies of it where an export has no client.)
        qmp("block_resize", {"node-name": "c", "size": 2 * MIB}),
        NODES,
        vhost_user("e", "c", writable=False),
        vhost_user("w", "f"),
        GRAPH,
    ],
)

PRE = {
    "driver": "preallocate",
    "node_name": "p",
    "file": "f",
    "prealloc_align": 8192,
    "prealloc_size": 64 * KIB,
}
PREALLOCATE = Case(
    "preallocate",
    {"disk": MIB},
    [
        add(**file("f", "disk")),
        add(driver="preallocate", node_name="p", file="f", prealloc_align=100),
        add(driver="preallocate", node_name="p", file="f", prealloc_align=4096, prealloc_size=MIB),
        add(driver="raw", node_name="r", file="p"),
        GRAPH,
        NODES,
        qmp("block_resize", {"node-name": "r", "size": 2 * MIB}),
        qmp("block_resize", {"node-name": "r", "size": MIB + 512}),
        NODES,
        vhost_user("e", "r"),
        GRAPH,
        reopen({"driver": "preallocate", "node_name": "p", "file": "f"}),
        reopen(PRE),
        reopen({**PRE, "prealloc_align": MIB}),
        reopen({**PRE, "prealloc_align": 1}),
        reopen({**PRE, "read_only": True}),
        reopen({"driver": "raw", "node_name": "r", "file": "f"}),
        delete("p"),
    ],
)

#: Filters go in and out below `r`.
INSERTION = Case(
    "insertion",
    FILES,
    [
        add(**file("f", "disk")),
        add(**file("t", "target")),
        add(driver="raw", node_name="r", file="f"),
        export("e", "r"),
        write("e", 0, 64 * KIB, 0x22),
        add(**CBW),
        # With a user, the filter wants the disk for itself, which the other writer has yet.
        add(driver="snapshot-access", node_name="s", file="c", read_only=True),
        reopen({"driver": "raw", "node_name": "r", "file": "c"}),
        add(driver="snapshot-access", node_name="s", file="c", read_only=True),
        export("s", "s", writable=False),
        write("e", 0, 128 * KIB, 0x33),
        read("s", 0, 256 * KIB),
        add(driver="copy-on-read", node_name="cor", file="c"),
        reopen({"driver": "raw", "node_name": "r", "file": "cor"}),
        write("e", 256 * KIB, 64 * KIB, 0x44),
        read("s", 0, MIB),
        read("e", 0, MIB),
        reopen({"driver": "raw", "node_name": "r", "file": "f"}),
        write("e", 512 * KIB, 64 * KIB, 0x55),
        read("s", 0, MIB),
        delete("cor"),
        unexport("s"),
        delete("s"),
        reopen({"driver": "raw", "node_name": "r", "file": "f"}),
        write("e", 512 * KIB, 64 * KIB, 0x66),
        delete("cor"),
        delete("c"),
        qmp("x-blockdev-change", {"parent": "r", "child": "file"}),
        qmp("x-blockdev-change", {"parent": "r", "node": "t"}),
    ],
)

NO_SNAPSHOT = Case(
    "not-a-snapshot",
    {"disk": 64 * KIB},
    [
        add(**file("f", "disk")),
        add(driver="snapshot-access", node_name="s", file="f", read_only=True),
        export("s", "s", writable=False),
        read("s", 0, 512),
        status("s", 0, 512),
    ],
)


def broken_copy(on_error: str, where: str) -> Case:
    """The first write to the target fails, or the first read of what is to be saved."""
    rule = {"event": "none", "iotype": where, "errno": 28, "once": True, "immediately": True}
    failing: dict[str, Any] = {"driver": "blkdebug", "inject_error": [rule], "discard": "unmap"}
    names = ("tf", "f") if where == "write" else ("t", "ff")
    debug = ("t", "tf") if where == "write" else ("f", "ff")
    return Case(
        f"copy-before-write-{on_error}-{where}",
        FILES,
        [
            add(**file(names[1], "disk", discard="unmap")),
            add(**file(names[0], "target")),
            add(**failing, node_name=debug[0], image=debug[1]),
            add(**CBW, on_cbw_error=on_error, discard="unmap"),
            add(driver="snapshot-access", node_name="s", file="c", read_only=True),
            export("e", "c"),
            export("s", "s", writable=False),
            write("e", 60 * KIB, 80 * KIB, 0x22),
            read("e", 0, 256 * KIB),
            read("s", 0, 256 * KIB),
            status("s", 0, 256 * KIB),
            write("e", 0, 4 * KIB, 0x33),
            zero("e", 192 * KIB, 4 * KIB, unmap=True),
            discard("e", 300 * KIB, 4 * KIB),
            flush("e"),
            read("e", 0, 512 * KIB),
            read("s", 0, 128 * KIB),
            read("s", 512 * KIB, 128 * KIB),
            status("s", 0, MIB),
            unexport("s"),
            unexport("e"),
            delete("s"),
            delete("c"),
        ],
    )


def late_copy(on_error: str) -> Case:
    """The second write to the target takes four seconds, and may take one."""
    limits = {"bps-write": 16 * KIB}
    return Case(
        f"copy-before-write-{on_error}-timeout",
        FILES,
        [
            qmp("object-add", {"qom-type": "throttle-group", "id": "g", "limits": limits}),
            add(**file("f", "disk")),
            add(**file("tf", "target")),
            add(driver="throttle", node_name="t", file="tf", throttle_group="g"),
            add(**CBW, on_cbw_error=on_error, cbw_timeout=1),
            add(driver="snapshot-access", node_name="s", file="c", read_only=True),
            export("e", "c"),
            export("s", "s", writable=False),
            write("e", 0, 4 * KIB, 0x22),
            write("e", 64 * KIB, 4 * KIB, 0x23),
            read("e", 0, 192 * KIB),
            read("s", 0, 192 * KIB),
            write("e", 4 * KIB, 4 * KIB, 0x24),  # has been copied
            read("e", 0, 192 * KIB),
            unexport("s"),
            unexport("e"),
            delete("s"),
            delete("c"),
        ],
    )


CASES = [
    PLAIN,
    COMPRESS,
    COPY_ON_READ,
    COR_PERMISSIONS,
    COPY_BEFORE_WRITE,
    CBW_BITMAP,
    CBW_OPTIONS,
    CBW_PERMISSIONS,
    PREALLOCATE,
    INSERTION,
    NO_SNAPSHOT,
    *(
        broken_copy(on_error, where)
        for on_error in ("break-guest-write", "break-snapshot")
        for where in ("write", "read")
    ),
    late_copy("break-guest-write"),
    late_copy("break-snapshot"),
]
