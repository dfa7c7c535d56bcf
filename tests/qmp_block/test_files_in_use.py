# SPDX-License-Identifier: Apache-2.0
"""No command truncates or formats a file that a node has open, whatever name is used for it.

QEMU's daemon excludes itself by image locks, which a node without users doesn't hold.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.support import RW, read_bytes, write_bytes
from tests.qmp_block.jobs import create
from tests.qmp_block.support import Call, check_answers, execute
from vhostblk.block.errors import BlockError, PermissionConflictError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.graph.storage import check_unused
from vhostblk.chardev.base import ChardevError
from vhostblk.chardev.options import chardev_options
from vhostblk.cli.pidfile import PidFile
from vhostblk.daemon import Daemon
from vhostblk.schema.jobs import JobStatus

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
PRECIOUS = b"precious".ljust(MIB, b"\xa5")


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def file(path: Path, **members: Any) -> dict[str, Any]:
    return {"driver": "file", "node-name": f"{path.name}-file", "filename": str(path), **members}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Make a file that has other names, too."""
    path = tmp_path / "disk"
    path.write_bytes(PRECIOUS)
    (tmp_path / "soft").symlink_to("disk")
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "dir").mkdir()
    return path


#: Nodes, and names of their files.
SAME = [("a", "a"), ("a-file", "a"), ("b", "b"), ("b-file", "b"), ("r-file", "r")]
NAMES = ["disk", "soft", "hard", "dir/../disk"]


def content(path: Path) -> bytes:
    return path.read_bytes()


def snapshot(node: str, name: str, **members: Any) -> Call:
    new = {"snapshot-file": name, "snapshot-node-name": "new"}
    return "blockdev-snapshot-sync", {"node-name": node, **new, **members}


async def outcome(daemon: Daemon, call: Call) -> str | None:
    """Run a command, and the job that it starts; return its error."""
    answer = await execute(daemon, *call)
    if "desc" in answer:
        return str(answer["desc"])
    if "job-id" not in call[1]:
        return None
    job = daemon.jobs.find(call[1]["job-id"])
    await job.wait()
    job.user_dismiss()
    return job.error


@pytest.mark.parametrize("locking", ["auto", "off"])
@pytest.mark.parametrize("base", ["disk-file", "raw", "window"])
def test_a_snapshot_is_no_file_of_its_own_chain(
    disk: Path, tmp_path: Path, base: str, locking: str
) -> None:
    async def main() -> None:
        nodes = [
            file(disk, locking=locking),
            {"driver": "raw", "node-name": "raw", "file": "disk-file"},
            {"driver": "raw", "node-name": "window", "file": "disk-file", "offset": 512},
        ]
        nodes = [node for node in nodes if node["node-name"] in ("disk-file", base)]
        async with Daemon(blockdevs=nodes) as daemon:
            user = BlockBackend("user", RW)
            for attached in (False, True):
                if attached:
                    user.attach(daemon.graph, daemon.graph.find(base))
                for name in NAMES:
                    for prefix in ("", "file:"):
                        call = snapshot(base, f"{prefix}{tmp_path}/{name}")
                        error = await outcome(daemon, call)
                        assert error is not None
                        reasons = ("same filename", "in use by node", '" lock. ')
                        assert any(reason in error for reason in reasons), error
                        assert content(disk) == PRECIOUS
            assert len(list(daemon.graph)) == len(nodes)
            await write_bytes(user, 0, b"x")
            await user.detach()

    asyncio.run(main())


def test_the_same_name_is_refused_as_by_qemu(tmp_path: Path) -> None:
    def script(directory: Path) -> list[Call]:
        for name in ("a", "b"):
            qemu_img("create", "-f", "qcow2", directory / name, MIB)
        (directory / "r").write_bytes(PRECIOUS)
        nodes = [file(directory / name) for name in ("a", "b", "r")]
        return [
            *(("blockdev-add", each) for each in nodes),
            ("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": "a-file"}),
            ("blockdev-add", {"driver": "raw", "node-name": "b", "file": "b-file"}),
            *(
                snapshot(node, str(directory / name), **members)
                for node, name in SAME
                for members in ({}, {"format": "raw"}, {"format": "bogus"})
            ),
        ]

    check_answers(tmp_path, script, lambda answer: answer)


@pytest.mark.parametrize("mode", ["absolute-paths", "existing"])
def test_files_of_images_below_are_kept_as_well(tmp_path: Path, mode: str) -> None:
    """These are the image, its data file, its backing file, and the latter's file."""
    data = tmp_path / "data"
    (tmp_path / "deep").write_bytes(PRECIOUS)
    qemu_img("create", "-f", "qcow2", "-b", tmp_path / "deep", "-F", "raw", tmp_path / "base")
    form = f"data_file={data}"
    qemu_img(
        *("create", "-f", "qcow2", "-o", form, "-b", tmp_path / "base", "-F", "qcow2"),
        tmp_path / "disk",
    )
    names = ("disk", "data", "base", "deep")

    async def main() -> None:
        image = {"driver": "qcow2", "node-name": "disk", "file": file(tmp_path / "disk")}
        async with Daemon(blockdevs=[image]) as daemon:
            user = BlockBackend("user", RW)
            user.attach(daemon.graph, daemon.graph.find("disk"))
            assert await read_bytes(user, 0, 8) == b"precious"
            await write_bytes(user, 65536, b"written")
            await user.flush()
            before = {name: (tmp_path / name).read_bytes() for name in names}
            for name in names:
                assert await outcome(daemon, snapshot("disk", str(tmp_path / name), mode=mode))
                assert {each: (tmp_path / each).read_bytes() for each in names} == before
            assert await read_bytes(user, 0, 8) == b"precious"
            assert await read_bytes(user, 65536, 7) == b"written"
            await user.detach()

    asyncio.run(main())


def test_an_image_is_not_laid_on_its_own_file(tmp_path: Path) -> None:
    """They are two nodes for one file, which image locks don't detect."""
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, MIB)
    below = {"driver": "file", "filename": str(path), "locking": "off"}

    async def main() -> None:
        nodes: list[dict[str, Any]] = [
            {"driver": "raw", "node-name": "base", "file": below},
            {"driver": "qcow2", "node-name": "overlay", "file": below, "backing": None},
        ]
        async with Daemon(blockdevs=nodes) as daemon:
            call: Call = ("blockdev-snapshot", {"node": "base", "overlay": "overlay"})
            message = (
                "Making 'base' a backing child of 'overlay' would create a cycle: both consist of "
                f"the file '{path}'"
            )
            assert await outcome(daemon, call) == message
            message = (
                "Could not open backing file: The file and backing children of node 'new' are the "
                f"same file, '{path}'"
            )
            image = {"driver": "qcow2", "node-name": "new", "file": below, "backing": "base"}
            assert await outcome(daemon, ("blockdev-add", image)) == message

    asyncio.run(main())


@pytest.mark.parametrize("role", ["target", "log", "data-file"])
def test_a_node_does_not_write_twice_to_one_file(disk: Path, tmp_path: Path, role: str) -> None:
    (tmp_path / "other").write_bytes(bytes(MIB))
    image = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={disk}", image, MIB)
    before = disk.read_bytes()
    (tmp_path / "same").symlink_to(image if role == "data-file" else disk)
    one = {"driver": "file", "filename": str(disk), "locking": "off"}
    same = {"driver": "file", "filename": str(tmp_path / "same"), "locking": "off"}
    node: dict[str, Any] = {
        "target": {"driver": "copy-before-write", "file": one, "target": same},
        "log": {"driver": "blklogwrites", "file": one, "log": same},
        "data-file": {"driver": "qcow2", "file": {**one, "filename": str(image)}, role: same},
    }[role]

    async def main() -> str | None:
        async with Daemon() as daemon:
            error = await outcome(daemon, ("blockdev-add", {**node, "node-name": "n"}))
            assert not list(daemon.graph)
            return error

    shown = image if role == "data-file" else disk
    assert asyncio.run(main()) == (
        f"The file and {role} children of node 'n' are the same file, '{shown}'"
    )
    assert disk.read_bytes() == before


def test_copies_of_a_disk_are_in_files_of_their_own(disk: Path, tmp_path: Path) -> None:
    one = {"driver": "file", "filename": str(disk), "locking": "off"}
    same = {**one, "filename": str(tmp_path / "hard"), "node-name": "same"}

    async def main() -> None:
        quorum = {"driver": "quorum", "node-name": "q", "children": [one], "vote-threshold": 1}
        async with Daemon(blockdevs=[quorum, same]) as daemon:
            call: Call = ("x-blockdev-change", {"parent": "q", "node": "same"})
            error = await outcome(daemon, call)
            assert error == (
                f"The children.0 and children.1 children of node 'q' are the same file, '{disk}'"
            )
            assert list(daemon.graph.find("q").children) == ["children.0"]
            assert not daemon.graph.find("same").parents

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["quorum", "blkverify"])
def test_files_that_are_only_read_may_be_the_same(disk: Path, tmp_path: Path, driver: str) -> None:
    """Until one of them is to be written to."""
    nodes: dict[str, dict[str, Any]] = {
        "quorum": {"driver": "quorum", "children": ["one", "same"], "vote-threshold": 1},
        "blkverify": {"driver": "blkverify", "raw": "one", "test": "same"},
    }
    node = nodes[driver]
    names = {"one": disk, "same": tmp_path / "hard"}
    files = {
        name: {
            "driver": "file",
            "node-name": name,
            "filename": str(path),
            "read-only": True,
            "locking": "off",
        }
        for name, path in names.items()
    }
    roles = ("children.0", "children.1") if driver == "quorum" else ("raw", "test")

    async def main() -> None:
        async with Daemon(blockdevs=[*files.values()]) as daemon:
            added = {**node, "node-name": "n", "read-only": True}
            assert await outcome(daemon, ("blockdev-add", added)) is None
            for name in names:
                written: Call = (
                    "blockdev-reopen",
                    {"options": [{**files[name], "read-only": False}]},
                )
                assert await outcome(daemon, written) == (
                    f"The {roles[0]} and {roles[1]} children of node 'n' are the same file, "
                    f"'{disk}'"
                )
                assert daemon.graph.find(name).read_only

    asyncio.run(main())


def test_files_that_nodes_have_open_are_not_created(disk: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with Daemon(blockdevs=[file(disk)]) as daemon:
            for name in NAMES:
                path = f"{tmp_path}/{name}"
                error = await outcome(daemon, create("file", filename=path, size=MIB))
                assert error == f"'{path}' is in use by node 'disk-file'"
                below = {"driver": "file", "filename": path}
                error = await outcome(daemon, create("qcow2", file=below, size=MIB))
                assert error == f"'{path}' is in use by node 'disk-file'"
            assert content(disk) == PRECIOUS
            await daemon.remove_blockdev("disk-file")
            assert await outcome(daemon, create("file", filename=str(disk), size=MIB)) is None
            assert content(disk) == bytes(MIB)

    asyncio.run(main())


@pytest.mark.parametrize("perm", [RW, Perm.CONSISTENT_READ])
@pytest.mark.parametrize("used", ["file", "data-file"])
def test_nodes_with_users_are_not_formatted(
    disk: Path, tmp_path: Path, used: str, perm: Perm
) -> None:
    other = tmp_path / "other"
    other.write_bytes(PRECIOUS)

    async def main() -> None:
        async with Daemon(blockdevs=[file(disk), file(other)]) as daemon:
            user = BlockBackend("user", perm)
            user.attach(daemon.graph, daemon.graph.find("disk-file"))
            names = {"file": "disk-file"}
            if used == "data-file":
                names = {"file": "other-file", "data_file": "disk-file"}
            error = await outcome(daemon, create("qcow2", **names, size=2 * MIB))
            assert error is not None
            assert "'disk-file': permissions" in error
            assert "required by block device 'user'" in error
            assert "unshared by an unnamed block device" in error
            assert content(disk) == content(other) == PRECIOUS
            await user.detach()
            assert await outcome(daemon, create("qcow2", **names, size=2 * MIB)) is None

    asyncio.run(main())


def test_nobody_comes_to_use_a_node_that_is_being_formatted(disk: Path) -> None:
    async def main() -> None:
        async with Daemon(blockdevs=[file(disk)]) as daemon:
            node = daemon.graph.find("disk-file")
            daemon.create_image("j", create("qcow2", file="disk-file", size=MIB)[1]["options"])
            refused = 0
            while daemon.jobs.find("j").status is not JobStatus.CONCLUDED:
                user = BlockBackend("user", Perm.CONSISTENT_READ)
                try:
                    user.attach(daemon.graph, node)
                except PermissionConflictError:
                    refused += 1
                else:
                    await user.detach()
                await asyncio.sleep(0)
            assert refused

    asyncio.run(main())


def test_other_processes_count_as_users(disk: Path) -> None:
    """So does one that only reads, which QEMU ignores."""
    reader = subprocess.Popen(
        ["qemu-io", "-r", "-f", "raw", str(disk)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    try:
        reader.stdin.write(b"length\n")
        reader.stdin.flush()
        while b"MiB" not in reader.stdout.readline():
            pass

        async def main() -> None:
            async with Daemon() as daemon:
                error = await outcome(daemon, create("file", filename=str(disk), size=5))
                assert error == (
                    'Failed to get shared "consistent read" lock. Is another process using the '
                    f"image [{disk}]?"
                )

        asyncio.run(main())
    finally:
        reader.communicate(b"quit\n")
    assert disk.read_bytes() == PRECIOUS


@pytest.mark.parametrize("append", [False, True])
def test_character_devices_write_to_no_disk(disk: Path, tmp_path: Path, append: bool) -> None:
    path = str(tmp_path / "soft")

    async def main() -> None:
        async with Daemon(blockdevs=[file(disk)]) as daemon:
            file_options = f"file,id=c,path={path},append={'on' if append else 'off'}"
            log_options = f"null,id=c,logfile={path},logappend={'on' if append else 'off'}"
            for text in (file_options, log_options):
                options = chardev_options(text)
                with pytest.raises(ChardevError, match="is in use by node 'disk-file'"):
                    await daemon.chardevs.add(options.id, options.backend)

    asyncio.run(main())
    assert disk.read_bytes() == PRECIOUS


def test_the_process_id_goes_to_no_disk(disk: Path) -> None:
    async def main() -> None:
        async with Daemon(blockdevs=[file(disk)]):
            with pytest.raises(BlockError, match="is in use by node 'disk-file'"):
                PidFile(str(disk), check_unused)

    asyncio.run(main())
    assert disk.read_bytes() == PRECIOUS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_loop_device_is_the_file_that_it_shows(disk: Path, tmp_path: Path) -> None:
    try:
        device = subprocess.run(
            ["losetup", "--find", "--show", str(disk)], check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop devices here")
    try:
        nodes = [{"driver": "host_device", "node-name": "device", "filename": device}]

        async def main() -> None:
            async with Daemon(blockdevs=nodes) as daemon:
                for call in (
                    snapshot("device", str(tmp_path / "hard")),
                    create("file", filename=str(disk), size=MIB),
                ):
                    error = await outcome(daemon, call)
                    assert error is not None
                    assert error.endswith("is in use by node 'device'")

        asyncio.run(main())
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert disk.read_bytes() == PRECIOUS
