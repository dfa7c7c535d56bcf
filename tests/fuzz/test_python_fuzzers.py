# SPDX-License-Identifier: Apache-2.0
"""The kept inputs of the Python fuzzers, and some mutations of them, the same ones every time."""

from __future__ import annotations

import importlib
import struct

import pytest

from fuzz import drive, qcow2, vhost_user_seeds, walker
from fuzz.vhost_user import one_input as serve


@pytest.mark.parametrize(
    ("name", "count"),
    [("connection", 300), ("keys", 500), ("qcow2", 60), ("vhost_user", 200), ("walker", 200)],
)
def test_inputs_do_no_harm(name: str, count: int) -> None:
    one_input = importlib.import_module(f"fuzz.{name}").one_input
    for data in drive.mutations(name, 1, count):
        one_input(data)


@pytest.mark.parametrize("name", ["requests", "postcopy"])
def test_scripts_to_begin_with_are_accepted_messages(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """So that what is found afterwards is found behind the handshake."""
    from fuzz.vhost_user import _Run

    failures: list[str] = []

    async def noted(self: _Run, message: object) -> None:
        answer = await self._session.handle(message)  # type: ignore[arg-type]
        answer.fds.close()
        if answer.failure is not None:
            failures.append(answer.failure)

    monkeypatch.setattr(_Run, "_handle", noted)
    serve(bytes([2]) + vhost_user_seeds.seeds()[name])
    assert not failures


def test_an_exception_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(qcow2._Script, "_is_whole", broken)
    with pytest.raises(ZeroDivisionError):
        qcow2.one_input((drive.CORPUS / "qcow2" / "plain-1").read_bytes())


def test_wrong_data_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    script = struct.pack("BBB", 3, 0, 3)
    data = (drive.CORPUS / "qcow2" / "plain-1").read_bytes()
    flags, _, length, pages = qcow2.decode(data)
    image = bytearray(length)
    for number, page in pages.items():
        image[number * 4096 : (number + 1) * 4096] = page[: length - number * 4096]
    qcow2.one_input(qcow2.encode(bytes(image), flags, script))

    async def forgetful(self: qcow2._Script, offset: int, data: bytes) -> None:
        self._written[offset] = data

    monkeypatch.setattr(qcow2._Script, "_write", forgetful)
    with pytest.raises(AssertionError, match="wrong data"):
        qcow2.one_input(qcow2.encode(bytes(image), flags, script))


def test_walkers_that_disagree_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walker, "expected_request", lambda *_arguments: None)
    with pytest.raises(AssertionError):
        walker.one_input(walker.seeds()["direct"])
