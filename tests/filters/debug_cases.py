# SPDX-License-Identifier: Apache-2.0
"""Cases about `blkdebug`."""

from __future__ import annotations

from typing import Any

from tests.filters.harness import (
    Case,
    Step,
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
    write,
    zero,
)

KIB = 1 << 10
MIB = 1 << 20
DISK: dict[str, bytes | int] = {"disk": b"\x11" * MIB}
FILE = add(**file("f", "disk", discard="unmap"))
ORDER = 'QEMU lists a node before children defined in it, but those called "file"'

NODES = qmp("query-named-block-nodes", {"flat": True})
GRAPH = qmp("x-debug-query-block-graph")


def debug(but: str = "", **members: Any) -> Step:
    """Add the node "d" on the file."""
    return add(but, driver="blkdebug", node_name="d", image="f", discard="unmap", **members)


def rule(event: str, **members: Any) -> dict[str, Any]:
    """Return a rule; `_` in names stands for `-`."""
    named = {
        name if name == "new_state" else name.replace("_", "-"): members[name] for name in members
    }
    return {"event": event, **named}


def all_kinds(where: str) -> list[Step]:
    """Do one request of each kind, on sectors 0, 8, 16 and 24."""
    return [
        read(where, 0, 4 * KIB),
        write(where, 4 * KIB, 4 * KIB, 0x22),
        zero(where, 8 * KIB, 4 * KIB),
        zero(where, 8 * KIB, 4 * KIB, unmap=True),
        discard(where, 12 * KIB, 4 * KIB),
        status(where, 0, 64 * KIB),
        flush(where),
        flush(where),
    ]


def with_rules(name: str, *steps: Step, on: str = "d", above: bool = False, **members: Any) -> Case:
    """Add a node with rules, perhaps a format on it, and do the steps on the export "e"."""
    before = [FILE, debug(**members)]
    if above:
        before.append(add(driver="raw", node_name="r", file="d", discard="unmap"))
    return Case(name, DISK, [*before, export("e", "r" if above else on), *steps, unexport("e")])


OPENING = Case(
    "opening",
    {
        **DISK,
        "rules": b'# rules\n[inject-error]\nevent = "none"\niotype = "read"\nerrno = "28"\n\n'
        b'[set-state "s"]\nevent = "write_aio"\nnew_state = "2"\n',
    },
    [
        FILE,
        *(
            debug("", **{name: value})
            for name in ("align", "max-transfer", "opt-write-zero", "max-discard")
            for value in (-1, 3, 1000, 1 << 31, 1 << 30, -(1 << 40))
            if (name, value) not in (("align", 1 << 30),)
        ),
        debug(align=4096, max_transfer=4096, opt_write_zero=8192, max_write_zero=4096),
        debug(align=4096, opt_discard=8192, max_discard=12288),
        debug(align=4096, opt_discard=6144),
        debug(inject_error=[{"event": "x"}]),
        debug(inject_error=[{}]),
        debug(inject_error=[rule("none", iotype="x")]),
        debug(inject_error=[rule("none", once=1)]),
        debug(set_state=[rule("none")]),
        debug(config="{dir}/missing"),
        debug(config="{dir}"),
        debug(take_child_perms=["x"]),
        debug(),
        NODES,
        GRAPH,
        delete("f"),
        delete("d"),
        debug(config="{dir}/rules"),
        NODES,
        export("e", "d"),
        *all_kinds("e"),
        unexport("e"),
        delete("d"),
        debug(align=512, max_transfer=65536, read_only=True),
        NODES,
        reopen({"driver": "blkdebug", "node_name": "d", "image": "f", "discard": "unmap"}),
        reopen({"driver": "blkdebug", "node_name": "d", "image": "f", "align": 512}),
        delete("d"),
        debug(take_child_perms=["write"], unshare_child_perms=["write", "resize"]),
        GRAPH,
        add(driver="raw", node_name="r", file="f"),
        export("e", "r"),
        delete("d"),
        delete("r"),
        add(**file("g", "disk")),
        add(driver="blkdebug", node_name="d", image="g"),
        add(driver="raw", node_name="r", file="d"),
        NODES,
        qmp("block_resize", {"node-name": "r", "size": 2 * MIB}),
        NODES,
        delete("r"),
        delete("d"),
        add(driver="blkdebug", node_name="d", image=file("h", "disk")),
        qmp("query-named-block-nodes", {"flat": True}, but=ORDER),
        delete("d"),
        debug(inject_error=[rule("none", iotype="read", once=True)]),
        NODES,
    ],
)

CASES = [
    OPENING,
    with_rules("always", *all_kinds("e"), inject_error=[rule("none")]),
    with_rules(
        "on-block-status", *all_kinds("e"), inject_error=[rule("none", iotype="block-status")]
    ),
    *(
        with_rules(
            f"only-{kind}", *all_kinds("e"), inject_error=[rule("none", iotype=kind, errno=28)]
        )
        for kind in ("read", "write", "write-zeroes", "discard", "flush")
    ),
    with_rules(
        "sectors",
        read("e", 0, 4 * KIB),
        read("e", 4 * KIB, 512),
        read("e", 4 * KIB + 512, 512),
        read("e", 0, 4 * KIB + 1024),
        write("e", 0, 8 * KIB, 0x22),
        zero("e", 0, 8 * KIB),
        discard("e", 0, 8 * KIB),
        flush("e"),
        read("e", 0, 4 * KIB),
        inject_error=[rule("none", sector=9, errno=12)],
    ),
    with_rules(
        "once",
        *all_kinds("e"),
        *all_kinds("e"),
        inject_error=[
            rule("none", once=True, errno=22, iotype="flush"),
            rule("none", once=True, immediately=True, errno=28),
            rule("none", once=True, errno=22),
            rule("pwritev", once=True, errno=12, delay_ns=1000),
        ],
    ),
    with_rules(
        "events",
        *all_kinds("e"),
        write("e", 512, 512, 0x33),
        *all_kinds("e"),
        inject_error=[
            rule("pwritev", errno=28),
            rule("pwritev_done", errno=0),
            rule("pwritev_zero", errno=12),
        ],
    ),
    with_rules(
        "states",
        *all_kinds("e"),
        *all_kinds("e"),
        inject_error=[rule("write_aio", state=2, errno=28), rule("read_aio", state=3, errno=12)],
        set_state=[
            rule("write_aio", new_state=2),
            rule("flush_to_disk", state=2, new_state=3),
            rule("flush_to_disk", state=2, new_state=4),
            rule("pwritev_zero", state=1, new_state=7),
        ],
        above=True,
    ),
    *(
        with_rules(
            f"announced-{event}",
            *all_kinds("e"),
            *all_kinds("e"),
            inject_error=[rule(event, errno=28, once=True)],
            above=True,
        )
        for event in ("read_aio", "write_aio", "flush_to_os", "flush_to_disk")
    ),
    *(
        with_rules(
            f"padding-{event}",
            write("e", 1024, 512, 0x21),
            write("e", 4 * KIB, 512, 0x22),
            write("e", 8 * KIB + 512, 12 * KIB, 0x23),
            write("e", 24 * KIB + 3584, 1024, 0x24),
            zero("e", 32 * KIB + 512, 16 * KIB),
            zero("e", 64 * KIB + 512, 16 * KIB, unmap=True),
            read("e", 512, 128 * KIB),
            align=4096,
            above=True,
            inject_error=[
                rule(event, errno=28, iotype=kind, once=True)
                for kind in ("write", "write-zeroes", "write")
            ],
        )
        for event in (
            "pwritev_rmw_head",
            "pwritev_rmw_after_head",
            "pwritev_rmw_tail",
            "pwritev_rmw_after_tail",
            "pwritev_done",
        )
    ),
    with_rules(
        "limits",
        write("e", 0, 64 * KIB, 0x22),
        zero("e", 6 * KIB, 50 * KIB),
        discard("e", 69 * KIB, 40 * KIB),
        zero("e", 131 * KIB, 50 * KIB, unmap=True),
        zero("e", 200 * KIB + 512, 512),
        write("e", 300 * KIB, 20 * KIB, 0x55),
        read("e", 0, MIB),
        status("e", 0, 64 * KIB),
        align=512,
        max_transfer=8 * KIB,
        opt_write_zero=12 * KIB,
        max_write_zero=24 * KIB,
        opt_discard=16 * KIB,
        max_discard=32 * KIB,
        inject_error=[
            rule("none", sector=300 * 2 + 34, iotype="write", errno=28),
            rule("none", sector=69 * 2 + 20, iotype="discard", errno=28),
            rule("none", sector=131 * 2 + 40, iotype="write-zeroes", errno=28),
        ],
    ),
    with_rules(
        "forwarded-permissions",
        write("e", 0, 512, 0x66),
        unshare_child_perms=["resize"],
        take_child_perms=["resize"],
    ),
]
