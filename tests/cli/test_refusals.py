# SPDX-License-Identifier: Apache-2.0
"""Bad input from outside: one clear line, exit status 1, nothing created or changed."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import refusal, run, running, wait_for_socket

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "--addr.type=unix,addr.path=v.sock"
NODE = ("--blockdev", "null-co,node-name=n,size=1048576")
EXPORT = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock"


@pytest.fixture(autouse=True)
def _image(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    (tmp_path / "odd.img").write_bytes(bytes(1000))


def test_unknown_option(tmp_path: Path) -> None:
    assert refusal("--bogus", cwd=tmp_path) == "unrecognized option '--bogus'"


def test_missing_image(tmp_path: Path) -> None:
    assert refusal("no.img", ADDRESS, cwd=tmp_path) == (
        "no.img: Could not open 'no.img': No such file or directory"
    )


def test_missing_file(tmp_path: Path) -> None:
    option = "file,filename=no.img,node-name=n"
    assert refusal("--blockdev", option, cwd=tmp_path) == (
        f"--blockdev {option}: Could not open 'no.img': No such file or directory"
    )


def test_an_image_that_is_no_file(tmp_path: Path) -> None:
    reason = "'/dev/null' is neither a regular file nor a block device"
    assert refusal("/dev/null", ADDRESS, cwd=tmp_path) == f"/dev/null: {reason}"


def test_unknown_member(tmp_path: Path) -> None:
    option = "null-co,node-name=n,bogus=1"
    assert refusal("--blockdev", option, cwd=tmp_path) == (
        f"--blockdev {option}: Parameter 'bogus' is unexpected"
    )


def test_a_duplicate_node(tmp_path: Path) -> None:
    assert refusal(*NODE, *NODE, cwd=tmp_path).endswith("Duplicate nodes with node-name='n'")


def test_a_duplicate_export(tmp_path: Path) -> None:
    said = refusal(*NODE, "--export", EXPORT, "--export", EXPORT, cwd=tmp_path)
    assert said == f"--export {EXPORT}: Block export id 'e' is already in use"


def test_a_duplicate_object(tmp_path: Path) -> None:
    said = refusal("--object", "iothread,id=a", "--object", "iothread,id=a", cwd=tmp_path)
    assert said == (
        "--object iothread,id=a: attempt to add duplicate property 'a' to object (type 'container')"
    )


def test_options_refer_to_earlier_ones_only(tmp_path: Path) -> None:
    said = refusal("--export", EXPORT, *NODE, cwd=tmp_path)
    assert said == f"--export {EXPORT}: Cannot find device='' nor node-name='n'"


def test_unknown_iothread(tmp_path: Path) -> None:
    said = refusal(*NODE, "--export", f"{EXPORT},iothread=io", cwd=tmp_path)
    assert said.endswith(': iothread "io" not found')


def test_a_read_only_node_exported_writable(tmp_path: Path) -> None:
    node = "null-co,node-name=n,read-only=on"
    said = refusal("--blockdev", node, "--export", f"{EXPORT},writable=on", cwd=tmp_path)
    assert said.endswith(": Cannot export read-only node as writable")


#: Takes root's right to write what it likes away.
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="no setpriv here")
def test_a_read_only_file_exported_writable(tmp_path: Path) -> None:
    (tmp_path / "disk.img").chmod(0o444)
    said = refusal("disk.img", f"{ADDRESS},writable=on", cwd=tmp_path, wrapper=UNPRIVILEGED)
    assert said == "disk.img: Could not open 'disk.img': Permission denied"


def test_an_image_in_use_by_another_process(tmp_path: Path) -> None:
    with running("disk.img", f"{ADDRESS},writable=on", cwd=tmp_path) as other:
        wait_for_socket(other, "v.sock")
        address = "--addr.type=unix,addr.path=w.sock,writable=on"
        said = refusal("disk.img", address, cwd=tmp_path)
    assert said.startswith(f"{address}: ")
    assert "lock" in said
    assert "disk.img" in said


def test_an_image_whose_size_is_no_multiple_of_the_block_size(tmp_path: Path) -> None:
    said = refusal("odd.img", f"{ADDRESS},logical-block-size=4k", cwd=tmp_path)
    assert "odd.img" in said
    assert "multiple of the logical block size" in said


@pytest.mark.parametrize("size", [1000, 511, 1, (1 << 20) + 100])
def test_an_image_of_other_than_whole_sectors(tmp_path: Path, size: int) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(size))
    reason = (
        f"Cannot export 'odd.img': its size of {size} bytes is not a multiple of the logical "
        "block size, 512"
    )
    for address in (ADDRESS, f"{ADDRESS},writable=on"):
        assert refusal("odd.img", address, cwd=tmp_path) == f"{address}: {reason}"
    node = "raw,node-name=n,file.driver=file,file.filename=odd.img"
    said = refusal("--blockdev", node, "--export", EXPORT, "--pidfile", "pid", cwd=tmp_path)
    assert said == f"--export {EXPORT}: {reason}"


def test_a_window_may_leave_the_odd_end_out(tmp_path: Path) -> None:
    node = "raw,node-name=n,file.driver=file,file.filename=odd.img,size="
    said = refusal("--blockdev", f"{node}1024", "--export", EXPORT, cwd=tmp_path)
    assert "its size of 1000 bytes is not a multiple" in said
    with running("--blockdev", f"{node}512", "--export", EXPORT, cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "v.sock")


def test_a_busy_socket_path(tmp_path: Path) -> None:
    with running(*NODE, "--export", EXPORT, cwd=tmp_path) as other:
        wait_for_socket(other, "v.sock")
        said = refusal(*NODE, "--export", EXPORT, cwd=tmp_path)
    assert "v.sock" in said


def test_a_socket_path_taken_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "v.sock").write_text("precious")
    assert "v.sock" in refusal("disk.img", ADDRESS, cwd=tmp_path)


def test_a_socket_path_too_long(tmp_path: Path) -> None:
    said = refusal("disk.img", f"--addr.type=unix,addr.path={'x' * 108}", cwd=tmp_path)
    assert "is too long" in said


def test_a_socket_in_a_missing_directory(tmp_path: Path) -> None:
    said = refusal("disk.img", "--addr.type=unix,addr.path=no/v.sock", cwd=tmp_path)
    assert said.endswith(": Failed to bind socket to no/v.sock: No such file or directory")


@pytest.mark.parametrize("number", ["77", "x", "", "99999999999999999999", "-1"])
def test_no_descriptor(tmp_path: Path, number: str) -> None:
    address = f"--addr.type=fd,addr.str={number}"
    assert refusal("disk.img", address, cwd=tmp_path).startswith(f"{address}: ")


def test_a_descriptor_that_is_no_socket(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("rb") as file:
        fd = file.fileno()
        address = f"--addr.type=fd,addr.str={fd}"
        said = refusal("disk.img", address, cwd=tmp_path, pass_fds=[fd])
    assert said == f"{address}: File descriptor '{fd}' is not a socket"


def test_a_socket_that_does_not_listen(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other:
        address = f"--addr.type=fd,addr.str={one.fileno()}"
        said = refusal("disk.img", address, cwd=tmp_path, pass_fds=[one.fileno()])
    assert said.endswith("is not a listening socket")


def test_two_roots_for_the_short_form(tmp_path: Path) -> None:
    other = ("--blockdev", "null-co,node-name=m")
    said = refusal(*NODE, *other, ADDRESS, cwd=tmp_path)
    assert said == f"{ADDRESS}: node-name is missing: it may be one of 'n', 'm'"


def test_what_came_before_a_failure_is_removed_again(tmp_path: Path) -> None:
    refusal(
        *(*NODE, "--export", EXPORT, "--pidfile", "pid"),
        *("--export", "vhost-user-blk,id=f,node-name=n,addr.type=unix,addr.path=no/w.sock"),
        cwd=tmp_path,
    )


def test_a_pidfile_that_can_not_be_made(tmp_path: Path) -> None:
    said = refusal(*NODE, "--export", EXPORT, "--pidfile", "no/pid", cwd=tmp_path)
    assert said == ("cannot create PID file: Could not create 'no/pid': No such file or directory")


def test_a_locked_pidfile(tmp_path: Path) -> None:
    with (tmp_path / "pid").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        said = refusal(*NODE, "--export", EXPORT, "--pidfile", "pid", cwd=tmp_path)
    assert said == (
        "cannot create PID file: Cannot lock pid file: Resource temporarily unavailable"
    )


def test_an_argument_that_is_no_utf_8(tmp_path: Path) -> None:
    assert refusal("\udcff.img", ADDRESS, cwd=tmp_path).startswith("\\udcff.img: Could not open")


def test_help_inside_options(tmp_path: Path) -> None:
    done = run("--object", "help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    title, *names = done.stdout.splitlines()
    assert title == "List of user creatable objects:"
    assert {"  iothread", "  secret", "  throttle-group"} <= set(names)
    assert names == sorted(names)
    for option in (["--blockdev", "raw,help"], ["--export", "vhost-user-blk,?"], ["-h"], ["-V"]):
        done = run(*option, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
