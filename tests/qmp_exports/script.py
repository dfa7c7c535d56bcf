# SPDX-License-Identifier: Apache-2.0
"""The QMP script that vhostblk and QEMU's storage daemon both go through.

It has each command with good and with bad arguments (but for an empty list to `blockdev-reopen`,
of which QEMU dies). `{dir}` in strings stands for a directory of
each daemon's own, which holds `disk.img` (1 MiB) and `other.img` (64 KiB).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.qmp_exports import differences as but

if TYPE_CHECKING:
    from tests.differential.differences import Difference


@dataclass(frozen=True, slots=True)
class Step:
    """One command and, where the answers differ, why."""

    command: str
    arguments: dict[str, Any] | None = None
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """Steps that one daemon goes through."""

    name: str
    steps: tuple[Step, ...]
    #: Have a front-end connect to this socket after the first steps.
    connect: str | None = None
    connect_after: int = 0
    arguments: tuple[str, ...] = field(default=())


def _object(**members: Any) -> dict[str, Any]:
    return {"qom-type": "iothread", "id": "io", **_wire(members)}


def _export(name: str = "e", **members: Any) -> dict[str, Any]:
    addr = {"type": "unix", "path": f"{{dir}}/{name}.sock"}
    return {"type": "vhost-user-blk", "id": name, "node-name": "n", "addr": addr, **_wire(members)}


def _null(name: str = "n", **members: Any) -> dict[str, Any]:
    return {"driver": "null-co", "node-name": name, "size": 1 << 20, **_wire(members)}


def _file(name: str = "f", image: str = "disk.img", **members: Any) -> dict[str, Any]:
    return {
        "driver": "file",
        "node-name": name,
        "filename": f"{{dir}}/{image}",
        **_wire(members),
    }


def _raw(name: str = "r", **members: Any) -> dict[str, Any]:
    return {"driver": "raw", "node-name": name, "file": "f", **_wire(members)}


def _group(name: str = "g", **members: Any) -> dict[str, Any]:
    return {"qom-type": "throttle-group", "id": name, **_wire(members)}


def _throttle(name: str = "t", **members: Any) -> dict[str, Any]:
    return {
        "driver": "throttle",
        "node-name": name,
        "file": "n",
        "throttle-group": "g",
        **_wire(members),
    }


def _wire(members: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in members.items()}


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def _get(path: str, name: str) -> Step:
    return Step("qom-get", {"path": path, "property": name})


def _set(path: str, name: str, value: object) -> Step:
    return Step("qom-set", {"path": path, "property": name, "value": value})


OBJECTS = Case(
    "objects",
    (
        Step("object-add", _object()),
        Step("object-add", _object()),
        Step("object-add", _object(id="0")),
        Step("object-add", _object(id="type")),
        Step("object-add", _object(id=5)),
        Step("object-add", _object(qom_type="bogus", id="x")),
        Step("object-add", _object(qom_type=5, id="x")),
        Step("object-add", {"qom-type": "iothread"}),
        Step("object-add", {"id": "x"}),
        Step("object-add"),
        Step("object-add", _object(id="x", bogus=1)),
        Step("object-add", _object(id="x", poll_max_ns=-1)),
        Step("object-add", _object(id="x", poll_max_ns="4")),
        Step("object-add", _object(id="x", thread_pool_min=5, thread_pool_max=4)),
        Step("object-add", _object(id="x", thread_pool_max=0)),
        Step("object-add", _object(id="two", poll_max_ns=5, poll_grow=3, poll_shrink=2)),
        *(
            Step("qom-list", {"path": path})
            for path in (
                *("/objects", "objects", "io", "/objects/io", "objects/io", "//objects//io/"),
                *("", "bogus", "/bogus", "/type", "/objects/io/poll-grow", "/chardevs/monitor"),
            )
        ),
        Step("qom-list", {"path": "/"}, but.ROOT),
        Step("qom-list", {"path": "///"}, but.ROOT),
        Step("qom-list", {"path": 5}),
        Step("qom-list"),
        *(
            _get("/objects/two", name)
            for name in (
                *("type", "poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"),
                *("thread-pool-min", "thread-pool-max", "bogus", "", "id", "qom-type"),
            )
        ),
        _get("/", "objects"),
        _get("/", "type"),
        _get("/objects", "io"),
        _get("/objects", "bogus"),
        _get("/bogus", "type"),
        _get("", "type"),
        Step("qom-get", {"path": "io"}),
        _set("io", "poll-max-ns", 77),
        _get("io", "poll-max-ns"),
        _set("io", "poll-max-ns", -1),
        _set("io", "poll-max-ns", "5"),
        _set("io", "poll-max-ns", True),
        _set("io", "poll-max-ns", None),
        _set("io", "poll-max-ns", {}),
        _get("io", "poll-max-ns"),
        _set("io", "poll-grow", 9),
        _set("io", "poll-shrink", 9),
        _set("io", "aio-max-batch", 9),
        _set("io", "thread-pool-max", 0),
        _set("io", "thread-pool-max", 9),
        _set("io", "thread-pool-min", 10),
        _set("io", "type", "x"),
        _set("io", "bogus", 1),
        _set("/", "type", {}),
        _set("/objects", "two", "/objects/io"),
        _set("/bogus", "type", 1),
        Step("qom-set", {"path": "io", "property": "poll-grow"}),
        Step("qom-list-types", None, but.FEWER_TYPES),
        Step("qom-list-types", {"abstract": True}, but.FEWER_TYPES),
        Step("qom-list-types", {"implements": "user-creatable"}, but.FEWER_TYPES),
        Step("qom-list-types", {"implements": "iothread"}),
        Step("qom-list-types", {"implements": "bogus"}),
        Step("qom-list-types", {"abstract": 5}),
        Step("qom-list-types", {"bogus": 5}),
        *(
            Step("qom-list-properties", {"typename": name})
            for name in (
                *("iothread", "event-loop-base", "container", "object", "chardev", "chardev-null"),
                *("chardev-socket", "user-creatable", "interface", "bogus", ""),
            )
        ),
        Step("qom-list-properties"),
        Step("object-del", {"id": "bogus"}),
        Step("object-del", {"id": "/objects/io"}),
        Step("object-del", {"id": "io"}),
        Step("object-del", {"id": "io"}),
        Step("object-del", {}),
        Step("qom-list", {"path": "/objects"}),
        Step("object-add", _object(qom_type="secret", id="x")),
    ),
)

THROTTLE = Case(
    "throttle",
    (
        Step("object-add", _group(limits={"iops-total": 100, "bps-read": 10**6})),
        Step("object-add", _group()),
        _get("g", "limits"),
        _get("g", "x-iops-total"),
        _get("g", "x-iops-size"),
        _get("g", "bogus"),
        _set("g", "x-iops-total", 5),
        _set("g", "x-iops-total", "5"),
        *(
            _set("g", "limits", limits)
            for limits in (
                {"iops-total": 50, "iops-total-max": 60, "iops-total-max-length": 2},
                {"iops-total-max-length": 0},
                {"iops-total-max-length": -1},
                {"iops-total-max-length": 2**32},
                {"iops-total-max-length": 2**32 - 1},
                {"iops-total-max": 10**15, "iops-total-max-length": 2},
                {"iops-total-max": 0},
                {"iops-total": -1},
                {"iops-total": 10**15 + 1},
                {"iops-total": 0},
                {"iops-read": 1},
                {"bps-total": 1},
                {"bps-write-max": 1},
                {"bps-write": 7, "bps-write-max": 6},
                {"bps-write": 7, "bps-write-max": 7, "bps-total-max": 9},
                {"bps-read-max-length": 2},
                {"iops-size": -1},
                {"iops-size": 4096},
                {"iops-total": 0, "iops-total-max": 0, "iops-total-max-length": 1},
                {"bogus": 1},
                {"iops-total": "1"},
                {"iops-total": 1.5},
                {},
                5,
                None,
            )
        ),
        _get("g", "limits"),
        Step("qom-list", {"path": "g"}),
        Step("qom-list-properties", {"typename": "throttle-group"}),
        Step("object-add", _group("x", x_iops_total=100, x_iops_total_max=10)),
        Step("object-add", _group("x", x_iops_total=-1)),
        Step("object-add", _group("x", x_iops_total="1")),
        Step("object-add", _group("x", x_iops_total_max_length=2**32)),
        Step("object-add", _group("x", x_iops_total_max_length=0)),
        Step("object-add", _group("x", x_bps_total=100, x_bps_read=1)),
        Step("object-add", _group("x", x_iops_size=100)),
        Step("object-add", _group("x", x_bogus=100)),
        Step("object-add", _group("x", limits={"iops-total-max": 10})),
        Step("object-add", _group("x", limits={"bogus": 10})),
        Step("object-add", _group("x", limits={"iops-write": "10"})),
        Step("object-add", _group("x", limits=10)),
        Step("object-add", _group("h", x_iops_total=7, x_bps_read=8, limits={"bps-write": 9})),
        _get("h", "limits"),
        Step("blockdev-add", _null()),
        Step("blockdev-add", _throttle(throttle_group="bogus")),
        Step("blockdev-add", _throttle(throttle_group="bogus", file="bogus")),
        Step("blockdev-add", _throttle(throttle_group=1)),
        Step("blockdev-add", _without(_throttle(), "throttle-group")),
        Step("blockdev-add", _without(_throttle(), "file")),
        Step("blockdev-add", _throttle(limits=1)),
        Step("blockdev-add", _throttle()),
        Step("blockdev-add", _throttle("two", file=_without(_null(), "node-name"))),
        Step("object-del", {"id": "g"}),
        Step("query-named-block-nodes", {"flat": True}, but.NEW_MEMBERS),
        Step("blockdev-reopen", {"options": [_throttle(throttle_group="bogus")]}),
        Step("blockdev-reopen", {"options": [_without(_throttle(), "throttle-group")]}),
        Step("blockdev-reopen", {"options": [_throttle(throttle_group="h")]}),
        Step("query-named-block-nodes", {"flat": True}, but.NEW_MEMBERS),
        Step("object-del", {"id": "h"}),
        Step("object-del", {"id": "g"}),
        Step("blockdev-del", {"node-name": "two"}),
        Step("object-del", {"id": "g"}),
        Step("block_resize", {"node-name": "t", "size": 1 << 21}),
        Step("blockdev-del", {"node-name": "n"}),
        Step("blockdev-del", {"node-name": "t"}),
        Step("object-del", {"id": "h"}),
        Step("qom-list", {"path": "/objects"}),
    ),
)

EXPORTS = Case(
    "exports",
    (
        Step("query-block-exports"),
        Step("blockdev-add", _null()),
        Step("blockdev-add", _null("ro", read_only=True)),
        Step("object-add", _object()),
        Step("block-export-add", _export("e", iothread="io")),
        Step("block-export-add", _export("e")),
        Step("block-export-add", _export("f", node_name="bogus")),
        Step("block-export-add", _export("0f")),
        Step("block-export-add", _export("f", iothread="bogus")),
        Step("block-export-add", _export("f", iothread="bogus", fixed_iothread=True)),
        Step("block-export-add", _export("f", node_name="ro", writable=True)),
        Step("block-export-add", _export("f", num_queues=0)),
        Step("block-export-add", _export("f", num_queues=70000)),
        Step("block-export-add", _export("f", num_queues="1")),
        Step("block-export-add", _export("f", logical_block_size=3), but.BLOCK_SIZE),
        Step("block-export-add", _export("f", logical_block_size=1000), but.BLOCK_SIZE),
        Step("block-export-add", _export("f", addr={"type": "unix", "path": "/nonexistent/f"})),
        Step("block-export-add", _export("f", addr={"type": "inet", "host": "::1", "port": "1"})),
        Step("block-export-add", _export("f", addr={"type": "bogus"})),
        Step("block-export-add", _export("f", addr={"path": "x"})),
        Step("block-export-add", _export("f", addr={"type": "unix"})),
        Step("block-export-add", _export("f", addr="x")),
        Step("block-export-add", _without(_export("f"), "addr")),
        Step("block-export-add", _without(_export("f"), "node-name")),
        Step("block-export-add", _without(_export("f"), "type")),
        Step("block-export-add", _without(_export("f"), "id")),
        Step("block-export-add", _export("f", bogus=1)),
        Step("block-export-add", _export("f", writable="yes")),
        Step("block-export-add", _export("f", type="bogus")),
        Step("block-export-add", _without(_export("f", type="nbd"), "addr"), but.NOT_YET),
        Step("block-export-add"),
        Step("block-export-add", _export("f", writable=True, iothread="io", fixed_iothread=True)),
        Step("query-block-exports"),
        Step("blockdev-del", {"node-name": "n"}),
        Step("block-export-del", {"id": "bogus"}),
        Step("block-export-del", {"id": "e", "mode": "bogus"}),
        Step("block-export-del", {"id": "e", "bogus": 1}),
        Step("block-export-del", {}),
        Step("block-export-del", {"id": "e"}),
        Step("query-block-exports"),
        Step("block-export-add", _export("e")),
        Step("block-export-del", {"id": "f", "mode": "hard"}),
        Step("block-export-del", {"id": "e", "mode": "safe"}),
        Step("query-block-exports"),
        Step("query-block-exports", {"bogus": 1}),
        Step("object-del", {"id": "io"}),
        Step("blockdev-del", {"node-name": "n"}),
    ),
)

SOCKETS = Case(
    "sockets",
    (
        Step("blockdev-add", _null()),
        Step("block-export-add", _export("e")),
        Step("block-export-add", {**_export("f"), "addr": _export("e")["addr"]}, but.SOCKET_IN_USE),
    ),
)

CLIENTS = Case(
    "clients",
    (
        Step("blockdev-add", _null()),
        Step("block-export-add", _export("e")),
        Step("query-block-exports"),
        Step("block-export-del", {"id": "e"}, but.SAFE_WITH_CLIENT),
    ),
    connect="e.sock",
    connect_after=2,
)

CLIENTS_HARD = Case(
    "clients-hard",
    (
        Step("blockdev-add", _null()),
        Step("block-export-add", _export("e")),
        Step("block-export-del", {"id": "e", "mode": "hard"}),
    ),
    connect="e.sock",
    connect_after=2,
)

IOTHREADS = Case(
    "iothreads",
    (
        Step("blockdev-add", _null()),
        Step("object-add", _object()),
        Step("block-export-add", _export("e", iothread="io")),
        Step("object-del", {"id": "io"}, but.IOTHREAD_IN_USE),
    ),
)

_NBD_ADDRESS = {"addr": {"type": "unix", "data": {"path": "{dir}/n"}}}

NBD = Case(
    "nbd",
    (
        Step("blockdev-add", _null()),
        Step("nbd-server-stop"),
        Step("nbd-server-add", {"device": "n"}),
        Step("nbd-server-add", {}),
        Step("nbd-server-remove", {"name": "n"}),
        Step("nbd-server-remove", {}),
        Step("nbd-server-remove", {"name": "n", "mode": "bogus"}),
        Step("nbd-server-start", {}),
        Step("nbd-server-start", {"addr": {"type": "bogus"}}),
        Step("nbd-server-start", {"addr": {"type": "unix", "path": "{dir}/n"}}),
        Step("nbd-server-start", _NBD_ADDRESS, but.NBD_SERVER),
    ),
)

NODES = Case(
    "nodes",
    (
        Step("query-named-block-nodes"),
        Step("query-block"),
        Step("query-blockstats"),
        Step("x-debug-query-block-graph"),
        Step("blockdev-add", _null()),
        Step("blockdev-add", _null()),
        Step("blockdev-add", _null("0")),
        Step("blockdev-add", _null("a" * 32)),
        Step("blockdev-add", {"driver": "null-co"}),
        Step("blockdev-add", {"driver": "bogus", "node-name": "x"}),
        Step("blockdev-add", {"node-name": "x"}),
        Step("blockdev-add", _null("x", bogus=1)),
        Step("blockdev-add", _null("x", size="1")),
        Step("blockdev-add", _null("x", cache={"direct": 1})),
        Step("blockdev-add", _null("x", detect_zeroes="unmap")),
        Step("blockdev-add", _file("x", "missing.img")),
        Step("blockdev-add", _file()),
        Step("blockdev-add", _raw("x", file="bogus")),
        Step("blockdev-add", _raw("x", file="x")),
        Step("blockdev-add", _without(_raw("x"), "file")),
        Step("blockdev-add", _raw("x", offset=1 << 30)),
        Step("blockdev-add", _raw()),
        Step("blockdev-add", _raw("inline", file=_without(_null(), "node-name"))),
        Step("query-named-block-nodes", {"flat": True}, but.NEW_MEMBERS),
        Step("query-named-block-nodes", {"flat": 1}),
        Step("query-blockstats", {"query-nodes": True}, but.NEW_MEMBERS),
        Step("query-block"),
        Step("x-debug-query-block-graph"),
        Step("blockdev-del", {"node-name": "f"}),
        Step("blockdev-del", {"node-name": "bogus"}),
        Step("blockdev-del", {}),
        Step("blockdev-del", {"node-name": "r"}),
        Step("blockdev-del", {"node-name": "inline"}),
        Step("blockdev-del", {"node-name": "f"}),
        Step("blockdev-del", {"node-name": "n"}),
        Step("query-blockstats", {"query-nodes": True}),
    ),
)

CHANGES = Case(
    "changes",
    (
        Step("blockdev-add", _file()),
        Step("blockdev-add", _file("g", "other.img")),
        Step("blockdev-add", _raw()),
        Step("blockdev-add", _null()),
        Step("block_resize", {"node-name": "r", "size": 2 << 20}),
        Step("block_resize", {"node-name": "f", "size": 1 << 20}),
        Step("block_resize", {"node-name": "r", "size": -1}),
        Step("block_resize", {"node-name": "bogus", "size": 512}),
        Step("block_resize", {"device": "bogus", "size": 512}),
        Step("block_resize", {"size": 512}),
        Step("block_resize", {"node-name": "r"}),
        Step("block_resize", {"node-name": "n", "size": 512}),
        Step("blockdev-reopen", {"options": [_raw(read_only=True)]}),
        Step("block_resize", {"node-name": "r", "size": 1 << 20}),
        Step("blockdev-reopen", {"options": [_raw()]}),
        Step("blockdev-reopen", {"options": [_raw(file="g")]}),
        Step("blockdev-reopen", {"options": [_raw(file="bogus")]}),
        Step("blockdev-reopen", {"options": [_raw("bogus")]}),
        Step("blockdev-reopen", {"options": [{"driver": "raw", "file": "f"}]}),
        Step("blockdev-reopen", {"options": [_file("r")]}),
        Step("blockdev-reopen", {"options": _raw()}),
        Step("blockdev-reopen", {}),
        Step("query-named-block-nodes", {"flat": True}, but.NEW_MEMBERS),
        Step("blockdev-set-active", {"node-name": "r", "active": False}, but.NEW_COMMAND),
        Step("blockdev-set-active", {"node-name": "r", "active": True}, but.NEW_COMMAND),
        Step("blockdev-set-active", {"node-name": "bogus", "active": True}, but.NEW_COMMAND),
        Step("blockdev-set-active", {}, but.NEW_COMMAND),
        Step("x-blockdev-change", {"parent": "r"}),
        Step("x-blockdev-change", {"parent": "bogus", "node": "n"}),
        Step("x-blockdev-change", {"parent": "r", "node": "bogus"}),
        Step("x-blockdev-change", {"parent": "r", "node": "n"}),
        Step("x-blockdev-change", {"parent": "r", "child": "bogus"}),
        Step("x-blockdev-change", {"parent": "r", "child": "file"}),
        Step("x-blockdev-change", {"parent": "r", "child": "file", "node": "n"}),
        Step("x-blockdev-change", {}),
        Step("block-set-write-threshold", {"node-name": "r", "write-threshold": 65536}),
        Step("query-named-block-nodes", {"flat": True}, but.NEW_MEMBERS),
        Step("block-set-write-threshold", {"node-name": "r", "write-threshold": 0}),
        Step("block-set-write-threshold", {"node-name": "bogus", "write-threshold": 0}),
        Step("block-set-write-threshold", {"node-name": "r", "write-threshold": -1}),
        Step("block-set-write-threshold", {"node-name": "r"}),
    ),
)

CHARDEVS = Case(
    "chardevs",
    (
        Step("query-chardev", None, but.INHERITED),
        Step("query-chardev-backends", None, but.CHARDEV_BACKENDS),
        Step("chardev-add", {"id": "c", "backend": {"type": "null", "data": {}}}),
        Step("chardev-add", {"id": "c", "backend": {"type": "null", "data": {}}}),
        Step("chardev-add", {"id": "x", "backend": {"type": "bogus", "data": {}}}),
        Step("chardev-add", {"id": "x", "backend": {"type": "null"}}),
        Step("chardev-add", {"id": "x"}),
        Step("chardev-add", {"id": "ring", "backend": {"type": "ringbuf", "data": {"size": 64}}}),
        Step("chardev-add", {"id": "x", "backend": {"type": "ringbuf", "data": {"size": 63}}}),
        Step("ringbuf-write", {"device": "ring", "data": "hello"}),
        Step("ringbuf-read", {"device": "ring", "size": 3}),
        Step("ringbuf-read", {"device": "ring", "size": 100, "format": "base64"}),
        Step("ringbuf-read", {"device": "c", "size": 3}),
        Step("ringbuf-read", {"device": "bogus", "size": 3}),
        Step("ringbuf-read", {"device": "ring", "size": 0}),
        Step("query-chardev", None, but.INHERITED),
        Step("qom-list", {"path": "/chardevs"}),
        _get("/chardevs/c", "type"),
        _get("/chardevs", "ring"),
        _get("/chardevs/monitor", "connected"),
        Step("chardev-change", {"id": "bogus", "backend": {"type": "null", "data": {}}}),
        Step("chardev-change", {"id": "c", "backend": {"type": "null", "data": {}}}),
        Step("chardev-send-break", {"id": "c"}),
        Step("chardev-send-break", {"id": "bogus"}),
        Step("chardev-remove", {"id": "c"}),
        Step("chardev-remove", {"id": "c"}),
        Step("chardev-remove", {"id": "monitor"}),
        Step("query-chardev", None, but.INHERITED),
    ),
)

_INACTIVE_NODE = {"node-name": "f", "active": False}

INACTIVE = Case(
    "inactive",
    tuple(
        Step(command, arguments, but.NO_INACTIVE_NODES)
        for command, arguments in (
            ("blockdev-add", _file(active=False)),
            ("block-export-add", _export(node_name="f", allow_inactive=False)),
            ("query-named-block-nodes", {"flat": True}),
            ("blockdev-set-active", _INACTIVE_NODE),
            ("query-named-block-nodes", {"flat": True}),
            ("block-export-add", _export("w", node_name="f", writable=True)),
            ("blockdev-set-active", _INACTIVE_NODE),
            ("query-named-block-nodes", {"flat": True}),
        )
    ),
)

REST = Case(
    "rest",
    (
        Step("query-version", None, but.VERSION),
        Step("query-commands", None, but.COMMANDS),
        Step("bogus"),
        Step("query-version", {"bogus": 1}),
        Step("qmp_capabilities"),
        Step("quit"),
    ),
)

CASES = (
    *(OBJECTS, THROTTLE, EXPORTS, SOCKETS, CLIENTS, CLIENTS_HARD, IOTHREADS, NBD),
    *(NODES, CHANGES, INACTIVE, CHARDEVS, REST),
)
