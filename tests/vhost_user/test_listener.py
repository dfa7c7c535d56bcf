# SPDX-License-Identifier: Apache-2.0
"""Where the server listens, and what it says when it can't."""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path

import pytest

from tests.descriptors import open_fds
from vhostblk.net.errors import ListenError
from vhostblk.net.listener import FdAddress, UnixAddress, listen


def test_path_is_created_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = listen(UnixAddress(str(path)))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()
    listener.close()


def test_relative_path_is_removed_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = listen(UnixAddress("s"))
    monkeypatch.chdir("/")
    listener.close()
    assert not (tmp_path / "s").exists()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = listen(UnixAddress(str(path)))
    listener.close()


def test_socket_in_use_is_refused_and_its_owner_undisturbed(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = listen(UnixAddress(path))
    with pytest.raises(ListenError, match="another process listens there"):
        listen(UnixAddress(path))
    with pytest.raises(BlockingIOError):
        first.socket.accept()
    first.close()


def test_other_files_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="exists and is not a socket"):
        listen(UnixAddress(str(path)))
    assert path.read_text() == "data"


def test_socket_that_another_has_replaced_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = listen(UnixAddress(str(path)))
    path.unlink()
    second = listen(UnixAddress(str(path)))
    first.close()
    assert path.exists()
    second.close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("a\0b", "null byte"),
        ("/tmp/" + "x" * 103, "is too long: must be less than 108 bytes"),
        ("/nonexistent/s", "Failed to bind socket to /nonexistent/s: No such file or directory"),
    ],
)
def test_paths_that_cannot_be(path: str, reason: str) -> None:
    before = open_fds()
    with pytest.raises(ListenError, match=reason):
        listen(UnixAddress(path))
    assert open_fds() <= before


def test_longest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listener = listen(UnixAddress("x" * 107))
    listener.close()
    assert not Path("x" * 107).exists()


def test_inherited_socket(tmp_path: Path) -> None:
    inherited = socket.socket(socket.AF_UNIX)
    inherited.bind(str(tmp_path / "s"))
    inherited.listen(1)
    listener = listen(FdAddress(str(inherited.detach())))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    listener.close()
    assert (tmp_path / "s").exists(), "the file is its creator's"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("foo", "Unable to parse FD number foo"),
        ("", "Unable to parse FD number "),
        ("-1", "Unable to parse FD number -1"),
        ("9999", "File descriptor '9999' is not open"),
        ("99999999999999999999", "is not open"),
    ],
)
def test_descriptors_that_cannot_be(name: str, reason: str) -> None:
    with pytest.raises(ListenError, match=reason):
        listen(FdAddress(name))


def test_inherited_descriptor_of_the_wrong_kind(tmp_path: Path) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(ListenError, match="is not a socket"):
        listen(FdAddress(str(fd)))
    os.close(fd)
    with socket.socket(socket.AF_INET) as tcp:
        with pytest.raises(ListenError, match="is not a UNIX stream socket"):
            listen(FdAddress(str(tcp.fileno())))
    with socket.socket(socket.AF_UNIX) as unbound:
        with pytest.raises(ListenError, match="is not a listening socket"):
            listen(FdAddress(str(unbound.fileno())))
        assert unbound.fileno() in open_fds()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_permissions_of_the_socket_file(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    group = os.getgid()
    listener = listen(UnixAddress(str(path), mode, str(group)))
    assert (path.stat().st_mode & 0o7777, path.stat().st_gid) == (mode, group)
    listener.close()


def test_group_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = listen(UnixAddress(str(path), group=grp.getgrgid(os.getgid()).gr_name))
    assert path.stat().st_gid == os.getgid()
    listener.close()


@pytest.mark.parametrize("group", ["no such group", "99999999999999999999"])
def test_groups_that_cannot_be(tmp_path: Path, group: str) -> None:
    path = tmp_path / "s"
    before = open_fds()
    with pytest.raises(ListenError, match=f"group '?{group}"):
        listen(UnixAddress(str(path), group=group))
    assert not path.exists()
    assert open_fds() <= before
