# SPDX-License-Identifier: Apache-2.0
"""What `tests.filters.harness` runs on both daemons."""

from __future__ import annotations

from tests.filters.harness import (
    Case,
    add,
    delete,
    discard,
    export,
    file,
    flush,
    read,
    reopen,
    status,
    unexport,
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

CASES = [PLAIN]
