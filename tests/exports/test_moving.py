# SPDX-License-Identifier: Apache-2.0
"""A hand-over between or within any messages of a session has no visible effect on the session.

This also holds for one that fails, after which the first process resumes.
"""

from __future__ import annotations

import asyncio
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.exports.moving import CHOICES, QUEUES, Script, script
from vhostblk.vhost_user.layout import Request

pytestmark = pytest.mark.usefixtures("lane")

#: A method of `Script` with its arguments.
Step = tuple[str, tuple[Any, ...], dict[str, Any]]


def step(name: str, *arguments: Any, **members: Any) -> Step:
    return (name, arguments, members)


def start(index: int = 0, *, features: tuple[str, ...] = ("flush", "protocol")) -> list[Step]:
    """Start a vring as front-ends do."""
    return [
        step("features", features),
        step("number", index, 16),
        step("base", index),
        step("addresses", index, logged=False),
        step("descriptor", Request.SET_VRING_CALL, "call", index, 0),
        step("kick", index, 0),
        step("enable", index, 1),
        step("write", index),
    ]


def start_in_band(index: int = 0) -> list[Step]:
    """Start a vring in-band, without descriptors."""
    set_up = [item for item in start(index) if item[0] not in ("descriptor", "kick")]
    return [step("channel"), *set_up[:-1], step("kick_in_band", index), step("write", index)]


_index = st.integers(0, QUEUES - 1)
_flag = st.booleans()
_two = st.integers(0, 1)


def _steps(name: str, *arguments: st.SearchStrategy[Any], **members: Any) -> Any:
    return st.tuples(st.just(name), st.tuples(*arguments), st.fixed_dictionaries(members))


_chosen = st.lists(st.sampled_from(sorted(CHOICES)), unique=True).map(tuple)
#: Mostly with the bit that front-ends always set.
_features = st.one_of(_chosen, _chosen.map(lambda names: tuple({*names, "protocol"})))

_step = st.one_of(
    _steps("features", _features),
    _steps("number", _index, st.sampled_from([16, 8, 0, 12])),
    _steps("addresses", _index, logged=_flag, wrong=st.sampled_from([False, False, True])),
    _steps("base", _index),
    _steps(
        "descriptor",
        st.just(Request.SET_VRING_CALL),
        st.just("call"),
        _index,
        st.integers(0, 3),
    ),
    _steps("descriptor", st.just(Request.SET_VRING_ERR), st.just("err"), _index, st.integers(0, 3)),
    _steps("kick", _index, st.integers(0, 3)),
    _steps("kick_in_band", _index),
    _steps("enable", _index, _two),
    _steps("stop", _index),
    _steps("write", _index),
    _steps("write", _index),
    _steps("config", st.integers(0, 2)),
    _steps("read_config"),
    _steps("status", st.sampled_from([0, 1, 15])),
    _steps("say", st.sampled_from([Request.RESET_OWNER, Request.RESET_DEVICE, Request.GET_STATUS])),
    _steps("table", _two),
    _steps("region", add=_flag),
    _steps("log_base", _two),
    _steps("log_event", _two),
    _steps("area", _two),
    _steps("channel"),
    _steps("acknowledge", now=_flag),
    _steps("state_transfer", _two),
    _steps("state_ends", st.sampled_from([b"", b"x"])),
)
_beginnings = st.sampled_from(["nothing", "one", "two", "in-band"])


def _beginning(name: str) -> list[Step]:
    return {
        "nothing": [],
        "one": start(0),
        "two": [*start(0), *start(1)],
        "in-band": [*start_in_band(0), *start(1)],
    }[name]


#: Where hand-overs cut messages in two, and whether the new process dies: within the header, which
#: is of 12 bytes, after it, and within the payload.
CUTS = ((4, False), (12, False), (15, True), (1, True), (40, False), (12, True))


async def run(
    steps: list[Step], moves: dict[int, bool], *, packed: bool, inband: bool, cut: bool = False
) -> dict[str, object]:
    """Run steps, with hand-overs after some of them; return everything visible.

    `cut`: there are more hand-overs, in the middle of each message.
    """
    with tempfile.TemporaryDirectory() as directory:
        async with script(Path(directory), packed=packed, inband=inband) as made:
            made.cuts = cycle(CUTS) if cut else None
            for number, (name, arguments, members) in enumerate(steps):
                await getattr(made, name)(*arguments, **members)
                await made.settle()
                if number in moves:
                    await made.move(fails=moves[number])
                    await made.settle()
            made.cuts = None
            state = made.state()
            await _go_on(made)
            return {
                "transcript": made.transcript,
                "state": state,
                "disk": made.node.log,
                "written": bytes(made.node.data),
            }


async def _go_on(made: Script) -> None:
    """Make requests that show the positions of vrings, and that they work."""
    for index in range(QUEUES):
        await made.enable(index, 1)
        await made.finish(index)
        await made.write(index)
        await made.stop(index)
    await made.say(Request.GET_STATUS)


def check(
    steps: list[Step],
    moves: dict[int, bool],
    *,
    packed: bool = False,
    inband: bool = False,
    cut: bool = False,
) -> None:
    async def main() -> None:
        expected = await run(steps, {}, packed=packed, inband=inband)
        found = await run(steps, moves, packed=packed, inband=inband, cut=cut)
        for part, content in expected.items():
            assert found[part] == content, part

    asyncio.run(main())


#: Special cases of hand-overs.
CASES: dict[str, list[Step]] = {
    "base of a vring that was stopped": [*start(), step("stop", 0)],
    "call of a vring that never ran": [
        *start(1)[:4],
        step("descriptor", Request.SET_VRING_CALL, "call", 1, 1),
        step("stop", 1),
        step("kick", 1, 0),
        step("enable", 1, 1),
    ],
    "base set while running": [*start(), step("base", 0)],
    "size set while running": [*start(), step("number", 0, 8)],
    "addresses set while running": [*start(), step("addresses", 0, logged=False, wrong=True)],
    "disabled": [*start(), step("enable", 0, 0), step("write", 0)],
    "disabled though features enable": [*start(features=()), step("enable", 0, 0)],
    "all disabled though features enable": [*start(features=()), step("say", Request.RESET_OWNER)],
    "enabled by features that were replaced": [
        step("features", ()),
        step("features", ("protocol",)),
        *start()[1:-2],
        step("write", 0),
    ],
    "enabled again by features": [
        step("enable", 0, 0),
        step("features", ("flush",)),
        *start(features=("flush",))[1:-2],
        step("write", 0),
    ],
    "disabled for good by a change of logging": [
        *start(features=()),
        step("enable", 0, 0),
        step("features", ("log",)),
    ],
    "cache chosen": [step("features", ("cache", "flush")), step("config", 0), *start()[1:]],
    "cache chosen without the feature": [step("features", ("flush",)), step("config", 0)],
    "cache chosen before a driver without the feature": [
        step("features", ("cache", "flush")),
        step("config", 0),
        step("features", ("flush",)),
        step("features", ("cache", "flush")),
    ],
    "configuration refused": [step("features", ("cache", "flush")), step("config", 2)],
    "stopped by other features": [
        *start(),
        step("say", Request.RESET_OWNER),
        step("features", ("flush", "discard", "protocol")),
    ],
    "other features refused": [*start(), step("features", ("discard", "protocol"))],
    "restart that failed": [
        *start(),
        step("addresses", 0, logged=False, wrong=True),
        step("kick", 0, 1),
        step("addresses", 0, logged=False),
        step("kick", 0, 1),
    ],
    "call refused": [
        *start(),
        step("descriptor", Request.SET_VRING_CALL, "call", 0, 3),
        step("kick", 0, 1),
    ],
    "error descriptor refused": [
        *start(),
        step("descriptor", Request.SET_VRING_ERR, "err", 0, 1),
        step("descriptor", Request.SET_VRING_ERR, "err", 0, 3),
    ],
    "call taken back": [*start(), step("descriptor", Request.SET_VRING_CALL, "call", 0, 2)],
    "polled": [*start()[:5], step("kick", 0, 2), step("enable", 0, 1), step("write", 0)],
    "kick replaced": [*start(), step("kick", 0, 1), step("write", 0)],
    "reset": [*start(), *start(1), step("say", Request.RESET_DEVICE)],
    "reset by the status": [*start(), step("status", 15), step("status", 0), *start(1)],
    "log kept by a reset": [
        *start(features=("log", "protocol")),
        step("log_base", 0),
        step("log_event", 0),
        step("say", Request.RESET_DEVICE),
        *start(features=("log", "protocol")),
    ],
    "log replaced": [
        *start(features=("log", "protocol")),
        step("log_base", 0),
        step("addresses", 0, logged=True),
        step("log_base", 1),
        step("log_event", 1),
        step("log_event", 0),
        step("write", 0),
    ],
    "logging switched off": [
        *start(features=("log", "protocol")),
        step("log_base", 0),
        step("addresses", 0, logged=True),
        step("features", ("protocol",)),
        step("addresses", 0, logged=False),
    ],
    "memory comes and goes": [
        step("table", 0),
        *start(),
        step("region", add=True),
        step("region", add=True),
        step("region", add=False),
        step("region", add=False),
        step("table", 1),
    ],
    "area for requests in flight": [step("area", 0), *start(), *start(1)],
    "another area for vrings to come": [
        *start(0),
        step("area", 0),
        *start(1),
        step("area", 1),
        step("write", 0),
        step("write", 1),
    ],
    "area forgotten by a reset": [step("area", 0), *start(), step("status", 0), *start()],
    "transfer of a state": [step("state_transfer", 1), step("state_ends", b"x")],
    "transfer of no state": [step("state_transfer", 1), *start(), step("state_ends", b"")],
    "saving a state": [step("state_transfer", 0), step("state_ends", b"")],
    "configuration read": [*start(), step("read_config")],
    "channel replaced": [step("channel"), step("channel"), *start()],
}
IN_BAND_CASES: dict[str, list[Step]] = {
    "in-band": start_in_band(),
    "in-band and stopped": [*start_in_band(), step("stop", 0)],
    "in-band, and not": [*start_in_band(), *start(1), step("kick", 0, 0), step("write", 0)],
    "not, and in-band": [*start_in_band(1), *start(), step("stop", 0), *start_in_band()],
    "in-band messages without an answer": [
        step("acknowledge", now=False),
        *start_in_band(),
        step("write", 0),
        step("acknowledge", now=True),
        step("write", 0),
        step("write", 0),
    ],
    "in-band and disabled": [*start_in_band(), step("enable", 0, 0), step("write", 0)],
    "in-band after a reset": [*start_in_band(), step("say", Request.RESET_DEVICE), *start(1)],
}


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("name", [*CASES, *IN_BAND_CASES])
def test_a_hand_over_after_every_message(name: str, packed: bool) -> None:
    steps = CASES.get(name) or IN_BAND_CASES[name]
    moves = {number: number % 2 == 0 for number in range(len(steps))}
    check(steps, moves, packed=packed, inband=name in IN_BAND_CASES)


@pytest.mark.parametrize("name", [*CASES, *IN_BAND_CASES])
def test_a_hand_over_within_every_message(name: str) -> None:
    steps = CASES.get(name) or IN_BAND_CASES[name]
    check(steps, {}, inband=name in IN_BAND_CASES, cut=True)


@settings(max_examples=40, deadline=None)
@given(
    _beginnings,
    st.lists(_step, max_size=12),
    st.dictionaries(st.integers(0, 24), st.booleans(), min_size=1, max_size=3),
    st.booleans(),
)
def test_any_session_goes_on_as_if_nothing_had_been(
    beginning: str, more: list[Step], moves: dict[int, bool], packed: bool
) -> None:
    steps = [*_beginning(beginning), *more]
    moves = {number % max(len(steps), 1): fails for number, fails in moves.items()}
    check(steps, moves, packed=packed, inband=beginning == "in-band")
