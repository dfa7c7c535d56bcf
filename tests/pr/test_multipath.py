# SPDX-License-Identifier: Apache-2.0
"""What libmpathpersist is asked, and what becomes of its answers; the library is a stand-in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.pr.client import parameters, reserve_in, reserve_out
from tests.pr.test_transport_ids import SAS, iscsi, listed
from vhostblk.pr.multipath import Multipath, MultipathError
from vhostblk.pr.sg import Sg
from vhostblk.reservations import sense
from vhostblk.reservations.sense import Sense, check_condition
from vhostblk.reservations.wire import Reply, Request

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhostblk.pr.multipath.CONTROL", "/dev/null")


@pytest.fixture
def log(tmp_path: Path, setenv: SetEnvironment) -> Path:
    setenv("FAKE_MPATH_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


class SetEnvironment:
    """Sets variables where C sees them; `os.environ` does that."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def __call__(self, name: str, value: str) -> None:
        self._patch.setenv(name, value)


@pytest.fixture
def setenv(monkeypatch: pytest.MonkeyPatch) -> SetEnvironment:
    return SetEnvironment(monkeypatch)


def sg(reply: int = 0) -> Sg:
    """Have TEST UNIT READY end with a status."""

    def ioctl(fd: int, request: int, memory: bytearray) -> object:
        memory[64] = reply  # status
        return 0

    return Sg(1000, ioctl)


def ask(mpath: str, cdb: bytes, given: bytes = b"", device: Sg | None = None) -> Reply:
    return Multipath(mpath, verbose=1).reserve(Request(cdb, 9, given), device or sg())


def test_read_keys(mpath: str, log: Path) -> None:
    reply = ask(mpath, reserve_in(0))
    assert reply.status == 0
    assert reply.data == (b"\1\2\3\4\0\0\0\x10keyAkeyAkeyBkeyB").ljust(8192, b"\0")
    assert log.read_text() == "in 0 noisy 0 verbose 1 max 8192\n"


def test_read_reservation(mpath: str, log: Path) -> None:
    assert ask(mpath, reserve_in(1)).data.startswith(b"\1\2\3\4\0\0\0\x10keyAkeyA")
    assert log.read_text().startswith("in 1 ")


def test_report_capabilities(mpath: str, log: Path) -> None:
    assert ask(mpath, reserve_in(2)).data == b"\0\x08\x11\x80\xea\x01".ljust(8192, b"\0")


@pytest.mark.parametrize("length", ["8184", "8192", "0xffffffff"])
def test_more_keys_than_there_is_room_for(
    mpath: str, log: Path, setenv: SetEnvironment, length: str
) -> None:
    setenv("FAKE_MPATH_LENGTH", length)
    data = ask(mpath, reserve_in(0)).data
    assert len(data) == 8192
    assert data[4:8] == int(length, 0).to_bytes(4, "big")


@pytest.mark.parametrize("action", [3, 4, 31])
def test_actions_in_that_the_library_does_not_have(mpath: str, log: Path, action: int) -> None:
    assert ask(mpath, reserve_in(action)) == check_condition(sense.INVALID_FIELD)
    assert not log.exists()


@pytest.mark.parametrize("action", range(7))
def test_actions_out(mpath: str, log: Path, action: int) -> None:
    given = parameters(0x1122334455667788, 0x99, flags=1)
    assert ask(mpath, reserve_out(action, kind=0x15), given) == Reply(0)
    assert log.read_text().splitlines() == [
        f"out {action} scope 1 type 5 flags 1 noisy 0 verbose 1 ids 0",
        "1122334455667788",
        "0000000000000099",
    ]


@pytest.mark.parametrize("action", [7, 8, 31])
def test_actions_out_that_the_library_does_not_have(mpath: str, log: Path, action: int) -> None:
    assert ask(mpath, reserve_out(action), parameters()) == check_condition(sense.INVALID_FIELD)
    assert not log.exists()


def test_transport_ids(mpath: str, log: Path) -> None:
    given = listed(SAS, iscsi(b"iqn.a\0\0\0"))
    assert ask(mpath, reserve_out(0, length=len(given)), given) == Reply(0)
    first, *_, sas, name = log.read_text().splitlines()
    assert first.endswith("ids 2")
    assert bytes.fromhex(sas) == b"\0\6sasaddr!" + bytes(10)
    assert bytes.fromhex(name) == b"\0\5\0\x08iqn.a\0\0\0" + bytes(8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (parameters()[:23], sense.INVALID_PARAMETER_LENGTH),
        (parameters() + b"abc", sense.INVALID_PARAMETER_LENGTH),
        (listed(SAS[:-1]), sense.INVALID_PARAMETER),
    ],
)
def test_wrong_parameter_lists(mpath: str, log: Path, given: bytes, expected: Sense) -> None:
    assert ask(mpath, reserve_out(0), given) == check_condition(expected)
    assert not log.exists()


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (2, sense.NOT_READY),
        (3, sense.READ_ERROR),
        (4, sense.TARGET_FAILURE),
        (5, sense.INVALID_PARAMETER),
        (6, sense.BUS_RESET),
        (7, sense.INVALID_OPCODE),
        (8, sense.IO_ERROR),
        (9, sense.NO_SENSE),
        *((other, sense.LUN_COMMUNICATION_FAILURE) for other in (-1, 1, 10, 12, 13, 14, 15, 99)),
    ],
)
@pytest.mark.parametrize("cdb", [reserve_in(0), reserve_out(1)], ids=["in", "out"])
def test_failures(
    mpath: str, log: Path, setenv: SetEnvironment, cdb: bytes, result: int, expected: Sense
) -> None:
    setenv("FAKE_MPATH_RESULT", str(result))
    assert ask(mpath, cdb, parameters()) == check_condition(expected)


def test_a_conflict(mpath: str, log: Path, setenv: SetEnvironment) -> None:
    setenv("FAKE_MPATH_RESULT", "11")
    assert ask(mpath, reserve_out(1), parameters()) == Reply(0x18)


def test_the_device_knows_more_of_a_failure(mpath: str, log: Path, setenv: SetEnvironment) -> None:
    setenv("FAKE_MPATH_RESULT", "2")
    assert ask(mpath, reserve_out(1), parameters(), sg(0x08)).status == 0x08


def test_a_library_that_does_not_start(mpath: str, setenv: SetEnvironment) -> None:
    setenv("FAKE_MPATH_BROKEN", "1")
    with pytest.raises(MultipathError, match=r"is multipath\.conf valid"):
        Multipath(mpath)


def test_no_library() -> None:
    with pytest.raises(MultipathError, match="cannot open shared object file"):
        Multipath("libno-such-library.so.0")


def test_some_other_library() -> None:
    with pytest.raises(MultipathError, match="libmpathpersist_init"):
        Multipath("libc.so.6")


def test_the_lock_is_given_back(mpath: str, log: Path) -> None:
    library = Multipath(mpath)
    for _ in range(3):
        library.reserve(Request(reserve_in(0), 9, b""), sg())
    library.close()
    assert len(log.read_text().splitlines()) == 3
    assert os.environ["FAKE_MPATH_LOG"] == str(log)


def test_device_mapper_that_can_not_be_reached(
    mpath: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library would end the process; the command fails, and no other."""
    monkeypatch.setattr("vhostblk.pr.multipath.CONTROL", str(tmp_path / "none"))
    library = Multipath(mpath)
    with pytest.raises(FileNotFoundError):
        library.reserve(Request(bytes([0x5E, *bytes(15)]), 9, b""), sg())
    library.close()
