# SPDX-License-Identifier: Apache-2.0
"""The rules of a conversation, without I/O."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhostblk.errors import VhostblkError
from vhostblk.qmp.errors import error_class
from vhostblk.qmp.registry import Command
from vhostblk.qmp.session import QUEUE_LENGTH, Session
from vhostblk.schema.base import QapiStruct


class Arguments(QapiStruct, kw_only=True, frozen=True):
    """What `with-arguments` takes."""

    name: str
    count: int = 0


async def handler(arguments: Arguments) -> None:
    pass


async def bare() -> None:
    pass


COMMANDS = {
    command.name: command
    for command in (
        Command("qmp_capabilities", bare, before_negotiation=True),
        Command("with-arguments", handler),
        Command("bare", bare),
        Command("urgent", bare, allow_oob=True),
    )
}


def negotiated(*capabilities: str) -> Session:
    session = Session(COMMANDS)
    session.negotiate(capabilities)
    return session


def refusal(session: Session, message: object) -> tuple[str, str]:
    session.receive(json.dumps(message).encode() + b" ")
    request = session.next()
    assert request is not None
    with pytest.raises(VhostblkError) as caught:
        session.check(request)
    session.finished(request)
    return error_class(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ([], "QMP input must be a JSON object"),
        (1, "QMP input must be a JSON object"),
        ({}, "QMP input lacks member 'execute'"),
        ({"arguments": {}, "id": 1}, "QMP input lacks member 'execute'"),
        ({"execute": 1}, "QMP input member 'execute' must be a string"),
        ({"execute": "bare", "arguments": []}, "QMP input member 'arguments' must be an object"),
        ({"execute": "bare", "x": 1}, "QMP input member 'x' is unexpected"),
        ({"exec-oob": "urgent"}, "QMP input member 'exec-oob' is unexpected"),
        ({"execute": "bare", "arguments": {"x": 1}}, "Parameter 'x' is unexpected"),
        ({"execute": "with-arguments"}, "Parameter 'name' is missing"),
        (
            {"execute": "with-arguments", "arguments": {"name": 1}},
            "Invalid parameter type for 'name', expected: string",
        ),
    ],
)
def test_requests_that_make_no_sense(message: object, said: str) -> None:
    assert refusal(negotiated(), message) == ("GenericError", said)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"exec-oob": 1}, "QMP input member 'exec-oob' must be a string"),
        ({"exec-oob": "bare"}, "The command bare does not support OOB"),
        (
            {"exec-oob": "urgent", "execute": "bare"},
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
    ],
)
def test_requests_out_of_band_that_make_no_sense(message: object, said: str) -> None:
    assert refusal(negotiated("oob"), message) == ("GenericError", said)


def test_a_command_that_is_not_there() -> None:
    assert refusal(negotiated(), {"execute": "no"}) == (
        "CommandNotFound",
        "The command no has not been found",
    )


@pytest.mark.parametrize("name", ["bare", "no"])
def test_before_the_negotiation_there_is_nothing_else(name: str) -> None:
    assert refusal(Session(COMMANDS), {"execute": name}) == (
        "CommandNotFound",
        "Expecting capabilities negotiation with 'qmp_capabilities'",
    )


def test_the_negotiation_is_over_once() -> None:
    with pytest.raises(VhostblkError, match="already complete, command ignored") as caught:
        negotiated().negotiate([])
    assert error_class(caught.value) == "CommandNotFound"


def test_arguments_become_a_struct() -> None:
    session = negotiated()
    session.receive(b'{"execute": "with-arguments", "arguments": {"name": "x"}, "id": [1]}')
    request = session.next()
    assert request is not None
    assert request.ids == {"id": [1]}
    call = session.check(request)
    assert (call.command.name, call.arguments) == ("with-arguments", Arguments(name="x"))


def test_one_at_a_time_without_oob() -> None:
    session = negotiated()
    session.receive(b'{"execute": "bare", "id": 1}{"execute": "bare", "id": 2}')
    first = session.next()
    assert first is not None
    assert session.next() is None
    assert not session.wants_input
    session.finished(first)
    second = session.next()
    assert second is not None
    assert (first.ids, second.ids) == ({"id": 1}, {"id": 2})
    session.finished(second)
    assert session.next() is None
    assert session.wants_input


def test_with_oob_the_urgent_overtake_a_bounded_queue() -> None:
    session = negotiated("oob")
    in_band = b'{"execute": "bare"}'
    session.receive(in_band * 5 + b'{"exec-oob": "urgent", "id": 1}' + in_band * QUEUE_LENGTH)
    urgent = session.next()
    assert urgent is not None
    assert urgent.out_of_band
    first = session.next()
    assert first is not None
    assert not first.out_of_band
    assert session.next() is None
    assert not session.wants_input
    session.finished(urgent)
    assert session.next() is None
    session.finished(first)
    for _ in range(5 + QUEUE_LENGTH - 1):
        request = session.next()
        assert request is not None
        session.finished(request)
    assert session.next() is None
    assert session.wants_input


def test_what_is_no_json_is_answered_in_its_turn() -> None:
    session = negotiated("oob")
    session.receive(b'{"execute": "bare", "id": 1} @ {"execute": "bare", "id": 2}')
    seen: list[dict[str, Any]] = []
    while (request := session.next()) is not None:
        seen.append(request.ids)
        if request.error is not None:
            assert str(request.error) == "JSON parse error, stray '@'"
        session.finished(request)
    assert seen == [{"id": 1}, {}, {"id": 2}]


def outcomes(session: Session, portions: list[bytes]) -> tuple[list[object], list[object]]:
    """Return what comes of requests in band and out of band, when each is finished at once."""
    in_band: list[object] = []
    out_of_band: list[object] = []
    for portion in portions:
        session.receive(portion)
        while (request := session.next()) is not None:
            seen = out_of_band if request.out_of_band else in_band
            try:
                call = session.check(request)
                seen.append((call.command.name, call.arguments, request.ids))
            except VhostblkError as error:
                seen.append((error_class(error), str(error), request.ids))
            session.finished(request)
        assert session.wants_input
    return in_band, out_of_band


FRAGMENTS = [
    b'{"execute": "bare"}',
    b'{"exec-oob": "urgent", "id": 1}',
    b"{'execute': 'with-arguments', 'arguments': {'name': 'x'}}",
    *[b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"\\", b"\xff", b"\n", b"1.5e", b"nul", b"@"],
]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=4), max_size=12).map(b"".join),
    st.lists(st.integers(0, 100), max_size=6),
    st.booleans(),
)
def test_how_the_bytes_arrive_makes_no_difference(data: bytes, cuts: list[int], oob: bool) -> None:
    data += b"\n\xff\n" + FRAGMENTS[0]
    capabilities = ("oob",) if oob else ()
    whole = outcomes(negotiated(*capabilities), [data])
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    portions = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert outcomes(negotiated(*capabilities), portions) == whole
    assert outcomes(negotiated(*capabilities), [bytes([byte]) for byte in data]) == whole
    assert whole[0][-1] == ("bare", None, {})
