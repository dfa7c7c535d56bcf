# SPDX-License-Identifier: Apache-2.0
"""Drawing programs: options of all kinds, and actions of guests and administrators.

A *focus* makes related features come together in a program; all others may occur, too. The simplest
program has the first choice of everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.model.program import BLKDEBUG_BLOCK, MIB, Act, Burst, Op, Options, Program
from tests.model.stack import COPIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.program import Step

    Draw = Callable[[st.SearchStrategy[Any]], Any]

#: The focuses.
FOCUSES = (
    "plain", "streams", "crash", "through", "full", "trouble", "graph", "filters", "data-file",
    "raw",
)  # fmt: skip

_SMALL = {
    "l2-cache-size": 1024,
    "l2-cache-entry-size": 512,
    "refcount-cache-size": 1024,
}
_FILTERS_ABOVE = (
    "throttle", "copy-on-read", "compress", "blkdebug", "blklogwrites", "raw", "window", "quorum",
    "blkverify", "copy-before-write",
)  # fmt: skip
_FILTERS_BELOW = (
    "throttle", "preallocate", "blkdebug", "blklogwrites", "raw", "offset", "quorum",
)  # fmt: skip
_INSERTED_ABOVE = (
    "throttle", "copy-on-read", "compress", "blkdebug", "blklogwrites", "raw", "copy-before-write",
)  # fmt: skip
_INSERTED_BELOW = ("throttle", "preallocate", "blkdebug", "blklogwrites", "raw")
_PACES = ("none", "short", "mixed", "long", "straggling")
#: Limit of a request, in clusters, so that programs with small clusters don't take too long.
_MOST_CLUSTERS = 1024


def _pick(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


def _chance(draw: Draw, percent: int) -> bool:
    """Draw True with `percent` percent; False is the simplest value."""
    drawn: int = draw(st.integers(0, 99))
    return drawn >= 100 - percent


# Options.


def _sizes(draw: Draw, focus: str) -> tuple[int, int]:
    """Return cluster bits, and the disk's size in sectors."""
    if focus == "streams":
        bits = _pick(draw, 16, 12, 14, 17)
        return bits, _pick(draw, 32, 24, 48) * MIB + _pick(draw, 0, 8, 24)
    bits = _pick(draw, 16, 12, 9, 10, 14, 18, 21)
    size = _pick(draw, 2 * MIB, 4 * MIB, 1000, 5 * MIB + 3, 8 * MIB)
    if bits > 9 and focus != "crash" and _chance(draw, 20):
        size = _pick(draw, 24 * MIB, 40 * MIB + 1)
    return bits, size


def _qcow2_form(draw: Draw, bits: int, focus: str) -> dict[str, Any]:
    """Draw the options of the qcow2 format."""
    if _chance(draw, 12) and focus != "data-file":
        return {"version": 2}
    form: dict[str, Any] = {}
    if bits >= 14 and _chance(draw, 30):
        form["extended"] = True
    if _chance(draw, 30):
        form["refcount_bits"] = _pick(draw, 1, 2, 4, 8, 32, 64)
    if _chance(draw, 25):
        form["lazy"] = True
    if _chance(draw, 20):
        form["zstd"] = True
    if focus == "data-file" or (focus != "crash" and _chance(draw, 8)):
        form["data_file"] = _pick(draw, "plain", "raw")
    return form


def _backing(draw: Draw, form: dict[str, Any], size: int) -> dict[str, Any]:
    if form.get("data_file") == "raw" or not _chance(draw, 40):
        return {}
    length = _pick(draw, size // 2, size, size + size // 2, 9)
    return {"backing": max(length, 1), "backing_format": _pick(draw, "raw", "qcow2")}


def _members(draw: Draw, form: dict[str, Any]) -> dict[str, Any]:
    """Return members of the qcow2 node's options."""
    members: dict[str, Any] = {}
    if _chance(draw, 40):
        members |= _SMALL
    if _chance(draw, 20):
        members["overlap-check"] = _pick(draw, "none", "constant", "all")
    for name in ("pass-discard-request", "pass-discard-snapshot", "pass-discard-other"):
        if _chance(draw, 10):
            members[name] = _pick(draw, True, False)
    if form.get("version") != 2:
        if _chance(draw, 10):
            members["discard-no-unref"] = True
        if _chance(draw, 10):
            members["lazy-refcounts"] = _pick(draw, True, False)
    return members


def _filters(draw: Draw, focus: str, options: dict[str, Any]) -> dict[str, Any]:
    share = 60 if focus == "filters" else 6
    above: list[str] = []
    below: list[str] = []
    qcow2 = options["format"] == "qcow2"
    while _chance(draw, share) and len(above) < 2:
        above.append(_pick(draw, *_FILTERS_ABOVE))
    while _chance(draw, share) and len(below) < 2:
        below.append(_pick(draw, *_FILTERS_BELOW))
    if not qcow2 or options.get("data_file") or (above and above[0] != "compress"):
        above = [kind for kind in above if kind != "compress"]
    if "compress" in above and options["size"] % (1 << options["cluster_bits"] - 9):
        above.remove("compress")
    if "compress" in above:
        above = ["compress", *(kind for kind in above if kind != "compress")]
    if options.get("cuts"):
        below = [kind for kind in below if kind not in ("offset", "quorum")]
    if "offset" in below:
        below = ["offset", *(kind for kind in below if kind not in ("offset", "quorum"))]
    for kind in ("quorum", "blkverify", "window"):
        if above.count(kind) > 1:
            above = [kind]
    if focus in ("full", "trouble"):  # copies that differ end the process, by design
        above = [kind for kind in above if kind not in COPIES]
        below = [kind for kind in below if kind not in COPIES]
    return {"above": tuple(above), "below": tuple(dict.fromkeys(below))}


@st.composite
def options(draw: Draw, focus: str, lane: str | None = None) -> Options:
    """Draw options for a program with a focus."""
    bits, size = _sizes(draw, focus)
    chosen: dict[str, Any] = {"format": "qcow2", "cluster_bits": bits, "size": size}
    if focus == "raw" or (focus in ("graph", "filters") and _chance(draw, 15)):
        chosen = {"format": "raw", "size": size}
    else:
        form = _qcow2_form(draw, bits, focus)
        chosen |= form | _backing(draw, form, size)
        if "backing" not in chosen and _chance(draw, 10):
            chosen["preallocation"] = _pick(draw, "metadata", "falloc", "full")
        chosen["members"] = _members(draw, form)
    chosen["lane"] = lane or _pick(draw, "backend", "python", "express")
    if chosen["lane"] != "backend":
        chosen["queues"] = _pick(draw, 1, 2, 3)
        chosen["packed"] = _chance(draw, 30)
        chosen["iothreads"] = chosen["queues"] > 1 and _chance(draw, 40)
        if size % 8 == 0 and _chance(draw, 20):
            chosen["block"] = 8
    if focus in ("crash", "through"):
        chosen["cuts"] = True
    elif focus not in ("full", "trouble") and _chance(draw, 20):
        chosen["storage"] = "file"
        chosen["direct"] = size % 8 == 0 and _chance(draw, 30)
    chosen["pace"] = _pick(draw, *_PACES)
    chosen["seed"] = draw(st.integers(0, 255))
    if focus == "through" or _chance(draw, 15):
        chosen["write_cache"] = _pick(draw, False, True)
    chosen["discard"] = not _chance(draw, 20)
    if _chance(draw, 15):
        chosen["detect_zeroes"] = _pick(draw, "on", "unmap")
    chosen |= _filters(draw, focus, chosen)
    if chosen["format"] == "raw" and "blkdebug" in chosen["below"]:
        chosen["size"] -= size % BLKDEBUG_BLOCK  # the last block can't be written to otherwise
    chosen["top"] = focus in ("graph", "filters") or not _chance(draw, 40)
    # If a file has two copies, names relative to its directory can't be resolved.
    if chosen["format"] == "qcow2" and focus != "filters" and "quorum" not in chosen["below"]:
        chosen["named"] = _chance(draw, 20)
    chosen["second"] = focus == "graph" and not chosen.get("data_file") and _chance(draw, 50)
    return Options(**chosen)


# Actions of the guest.


def _places(draw: Draw, chosen: Options) -> int:
    """Draw the start of a request: few places, so that requests overlap; most at clusters."""
    size = chosen.size
    cluster = max(1 << chosen.cluster_bits - 9, 1)
    base = draw(st.integers(0, 15)) * cluster
    if _chance(draw, 25):
        base = draw(st.integers(0, size - 1))
    elif _chance(draw, 15):
        base = size - 1 - draw(st.integers(0, 20))
    place: int = base + _pick(draw, 0, 0, 8, 1, cluster // 2, cluster - 1)
    return place % size


def _lengths(draw: Draw, chosen: Options) -> int:
    cluster = max(1 << chosen.cluster_bits - 9, 1)
    length: int = _pick(
        draw, 8, 1, cluster, 3, 16, 64, 128, cluster + cluster // 2, 2 * cluster, 1024, 4096, 16384
    )
    return min(length, chosen.size, _MOST_CLUSTERS * cluster)


_KINDS = ("write",) * 9 + (
    "read", "read", "discard", "discard", "zero", "unmap", "flush", "fua", "packed", "blank",
)  # fmt: skip


@st.composite
def _op(draw: Draw, chosen: Options) -> Op:
    kind = _pick(draw, *_KINDS)
    if kind == "flush":
        return Op("flush", 0, 0)
    count = _lengths(draw, chosen)
    times = 1
    step = 0
    if _chance(draw, 25):
        cluster = max(1 << chosen.cluster_bits - 9, 1)
        times = draw(st.integers(2, 40))
        most = min(16 * MIB, 4 * _MOST_CLUSTERS * cluster)
        times = max(min(times, most // max(count, 1)), 1)
        step = _pick(draw, count, 2 * count, cluster, max(count - 1, 1), 2 * cluster, count + 1)
    return Op(kind, _places(draw, chosen), count, times, step if times > 1 else 0)


@st.composite
def _burst(draw: Draw, chosen: Options, acts: st.SearchStrategy[Act] | None = None) -> Burst:
    ops = draw(st.lists(_op(chosen), min_size=1, max_size=12))
    depth = _pick(draw, 32, 1, 2, 4, 8, 16, 64, 128)
    beside: list[Act] = []
    if acts is not None and _chance(draw, 25):
        beside = draw(st.lists(acts, min_size=1, max_size=2))
    disk = 1 if chosen.second and _chance(draw, 30) else 0
    return Burst(tuple(ops), depth, disk, tuple(beside))


@st.composite
def _stream(draw: Draw, chosen: Options) -> list[Step]:
    """Write streams that are long enough to be detected, then continue with gaps or overlaps."""
    cluster = max(1 << chosen.cluster_bits - 9, 1)
    count = _pick(draw, 1024, 128, 256, cluster, 2048)
    total = _pick(draw, 5, 4, 6, 8) * MIB
    times = max(total // count, 1)
    start = _pick(draw, 0, 2 * MIB, cluster * 5)
    first = Op("write", start, count, times, count)
    streams = [first]
    if _chance(draw, 30):
        streams.append(Op("write", (start + chosen.size // 2) % chosen.size, count, times, count))
    steps: list[Step] = [Burst(tuple(streams), _pick(draw, 1, 2, 4, 16))]
    end = start + count * times
    for _ in range(draw(st.integers(1, 3))):
        length = _pick(draw, cluster, 128, 8, 2 * cluster)
        gap = _pick(draw, 1, 2, 3, 0)
        lead = _pick(draw, 0, 1, 2, 4)
        at = end + lead * cluster
        number = draw(st.integers(2, 96))
        ops = [Op(_pick(draw, "write", "blank", "fua"), at, length, number, length + gap * cluster)]
        if _chance(draw, 30):
            ops.append(draw(_op(chosen)))
        steps.append(Burst(tuple(ops), _pick(draw, 32, 8, 128, 1)))
        end = at + number * (length + gap * cluster)
    return steps


@st.composite
def _reuse(draw: Draw, chosen: Options) -> list[Step]:
    """Overwrite clusters, free them meanwhile, and make others reuse their storage."""
    cluster = max(1 << chosen.cluster_bits - 9, 1)
    places = draw(st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True))
    begin: list[Op] = []
    burst: list[Op] = []
    for place in places:
        begin.append(Op("write", place * cluster, cluster))
        burst.append(Op(_pick(draw, "write", "read"), place * cluster, _pick(draw, cluster, 1, 8)))
    burst += [
        Op(_pick(draw, "discard", "unmap", "packed"), place * cluster, cluster) for place in places
    ]
    burst.append(Op("flush", 0, 0))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(12, 40)) * cluster
        burst.append(Op(_pick(draw, "write", "packed"), at, _pick(draw, cluster, 8, 2 * cluster)))
    burst += draw(st.lists(_op(chosen), max_size=3))
    return [Burst(tuple(begin)), Burst(tuple(burst), _pick(draw, 32, 128, 16, 8))]


# Actions of the administrator, and events.


def _name(draw: Draw) -> str:
    name: str = _pick(draw, "a", "b", "c")
    return name


def _act(draw: Draw, chosen: Options, name: str) -> Act:
    """Draw the arguments of an act."""
    arguments: dict[str, Any] = {}
    match name:
        case "cache":
            arguments["on"] = _pick(draw, False, True)
        case "lane":
            arguments["name"] = _pick(draw, "python", "express")
        case "reopen":
            arguments = _members(draw, {"version": chosen.version})
        case "resize":
            size = chosen.size
            arguments["size"] = _pick(draw, size + 8, size // 2, size * 2, size - 8, 3 * MIB, 1000)
        case "snapshot" | "delete_snapshot" | "apply_snapshot":
            arguments["name"] = _name(draw)
        case "overlay":
            arguments["sync"] = _pick(draw, False, True)
        case "insert_above":
            kinds: tuple[str, ...] = _INSERTED_ABOVE
            if chosen.format == "raw" or chosen.data_file or chosen.size % 2048:
                kinds = tuple(kind for kind in kinds if kind != "compress")
            arguments["kind"] = _pick(draw, *kinds)
        case "insert_below":
            arguments["kind"] = _pick(draw, *_INSERTED_BELOW)
        case "bitmap":
            arguments["name"] = _name(draw)
            arguments["granularity"] = 1 << _pick(draw, 16, 9, 12)
            arguments["persistent"] = _pick(draw, False, True)
        case "bitmap_do":
            arguments["name"] = _name(draw)
            arguments["what"] = _pick(draw, "remove", "clear", "disable", "enable")
        case "crash":
            arguments["how"] = _pick(draw, "killed", "none", "some")
            arguments["seed"] = draw(st.integers(0, 255))
        case "space":
            arguments["blocks"] = _pick(draw, 40, 0, 1, 2, 3, 5, 10, 200, 1000, None)
        case "fail":
            arguments["kind"] = _pick(draw, "write", "flush", "read")
            arguments["count"] = _pick(draw, 1, 2, 5)
        case _:
            pass
    return Act(name, arguments)


_ACTS: dict[str, tuple[str, ...]] = {
    "plain": (
        "cache", "snapshot", "delete_snapshot", "apply_snapshot", "reopen", "restart", "check",
        "resize",
    ),
    "streams": ("snapshot", "restart", "resize", "overlay", "cache"),
    "crash": (
        "crash", "cache", "snapshot", "delete_snapshot", "apply_snapshot", "overlay", "resize",
        "reopen", "bitmap", "restart",
    ),
    "through": ("cache", "cache", "crash", "snapshot", "overlay", "lane"),
    "full": ("space", "space", "snapshot", "restart", "check", "resize", "cache", "overlay"),
    "trouble": ("fail", "fail", "fail", "snapshot", "restart", "check", "resize", "cache"),
    "graph": (
        "swap", "insert_above", "remove_above", "insert_below", "remove_below", "overlay", "reopen",
        "resize", "bitmap", "bitmap_do", "snapshot", "apply_snapshot", "delete_snapshot",
        "inactivate", "restart", "lane", "read_kept", "cache",
    ),
    "filters": (
        "insert_above", "remove_above", "insert_below", "remove_below", "resize", "restart",
        "snapshot", "read_kept", "cache",
    ),
    "data-file": ("reopen", "resize", "restart", "overlay", "inactivate", "cache", "check"),
    "raw": ("resize", "overlay", "restart", "cache", "insert_above", "remove_above", "bitmap"),
}  # fmt: skip
#: Acts that may run while requests are in flight.
_BESIDE = frozenset(
    {
        "snapshot", "delete_snapshot", "overlay", "reopen", "insert_above", "remove_above",
        "insert_below", "remove_below", "lane", "cache", "bitmap", "read_kept", "fail", "space",
    }
)  # fmt: skip


@st.composite
def _acts(draw: Draw, chosen: Options, names: tuple[str, ...]) -> Act:
    return _act(draw, chosen, _pick(draw, *names))


@st.composite
def programs(draw: Draw, focus: str | None = None, lane: str | None = None) -> Program:
    """Draw a program."""
    about = focus or _pick(draw, *FOCUSES)
    chosen = draw(options(about, lane))
    names = _ACTS[about]
    # The engine would keep writing after a power cut.
    besides = _BESIDE if chosen.lane == "express" else _BESIDE | {"crash"}
    beside = _acts(chosen, tuple(name for name in names if name in besides) or ("cache",))
    steps: list[Step] = []
    if about == "streams":
        steps += draw(_stream(chosen))
    elif about == "full":
        steps.append(Act("space", {"blocks": _pick(draw, 40, 0, 2, 10, 200, 1000)}))
    one: st.SearchStrategy[list[Step]] = st.one_of(
        _burst(chosen, beside).map(lambda burst: [burst]),
        _burst(chosen).map(lambda burst: [burst]),
        _acts(chosen, names).map(lambda act: [act]),
        _reuse(chosen),
    )
    for more in draw(st.lists(one, min_size=1, max_size=10)):
        steps += more
    return Program(chosen, tuple(steps))
