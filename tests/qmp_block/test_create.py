# SPDX-License-Identifier: Apache-2.0
"""`blockdev-create` answers what QEMU's storage daemon answers, and leaves nothing half made."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.qmp_block.jobs import create, run_calls
from tests.qmp_exports.daemons import QEMU_10, VHOSTBLK
from vhostblk.daemon import Daemon
from vhostblk.jobs.errors import JobError
from vhostblk.schema.jobs import JobStatus

if TYPE_CHECKING:
    from pathlib import Path

    from tests.qmp_block.support import Call

MIB = 1 << 20


def qcow2(**options: Any) -> Call:
    return create("qcow2", **{"file": "f", "size": MIB, **options})


def amend(node: str = "q", driver: str = "qcow2", **members: Any) -> Call:
    options = {"driver": driver, **members}
    return "x-blockdev-amend", {"job-id": "j", "node-name": node, "options": options}


SCRIPT: list[Call] = [
    create("file", filename="{dir}/a", size=MIB),
    create("file", filename="{dir}/b", size=MIB, preallocation="metadata"),
    create("file", filename="{dir}/b", size=MIB, preallocation="falloc"),
    create("file", filename="{dir}/c", size=MIB, preallocation="full"),
    create("file", filename="{dir}/nowhere/c", size=MIB),
    create("file", filename="{dir}/d", size=1 << 62),
    create("file", filename="{dir}/d", size=(1 << 64) - 512),
    create("file", filename="{dir}/e", size=100),
    create("file", filename="{dir}/f", size=0, extent_size_hint=1 << 33),
    create("file", filename="{dir}/f", size=0, extent_size_hint=MIB, nocow=True),
    create("file", filename="{dir}", size=100),
    create("file", filename="{dir}/f"),
    create("file", filename="{dir}/f", size=1, preallocation="some"),
    create("file", "1", filename="{dir}/a", size=1),
    create("null-co"),
    create("raw"),
    create("raw", size=5),
    create("bogus"),
    create("qcow2"),
    create("qcow2", file="x", size=512),
    ("blockdev-add", {"driver": "file", "node-name": "f", "filename": "{dir}/a"}),
    qcow2(),
    qcow2(size=1000),
    qcow2(cluster_size=1000),
    qcow2(cluster_size=1 << 22),
    qcow2(cluster_size=4096, extended_l2=True),
    qcow2(version="v2", extended_l2=True),
    qcow2(version="v2", lazy_refcounts=True),
    qcow2(version="v2", refcount_bits=8),
    *(qcow2(refcount_bits=bits) for bits in (-1, 0, 7, 128)),
    qcow2(version="v2", compression_type="zstd"),
    qcow2(compression_type="lzo"),
    qcow2(backing_fmt="raw"),
    qcow2(backing_file="x", preallocation="full"),
    qcow2(data_file_raw=True),
    qcow2(data_file="f", data_file_raw=True, backing_file="x"),
    qcow2(data_file="f", version="v2"),
    qcow2(data_file="f"),
    qcow2(backing_file="x" * 1024),
    qcow2(backing_file="x" * 600, cluster_size=512),
    qcow2(backing_file="x", backing_fmt="bogus"),
    *(qcow2(size=size) for size in (1 << 62, (1 << 64) - 512)),
    qcow2(size=1 << 60, cluster_size=512),
    qcow2(file={"driver": "file", "filename": "{dir}/nothing"}),
    qcow2(file={"driver": "file", "filename": "{dir}/c"}, extent_size_hint=4),
    qcow2(file={"driver": "null-co", "size": MIB}),
    ("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": "f"}),
    qcow2(),
    qcow2(file="q"),
    amend(),
    amend(encrypt={"format": "luks", "state": "inactive"}),
    amend(encrypt={"format": "luks"}),
    amend(encrypt={"format": "qcow"}),
    amend(compat="0.10"),
    amend(driver="raw"),
    amend(driver="bogus"),
    amend("f"),
    amend("f", driver="file"),
    amend("x"),
    ("blockdev-del", {"node-name": "f"}),
    ("query-jobs", {}),
    *(
        (f"job-{verb}", {"id": "x"})
        for verb in ("cancel", "complete", "dismiss", "finalize", "pause", "resume")
    ),
    ("job-dismiss", {}),
]


def test_answers_are_those_of_qemu(tmp_path: Path) -> None:
    if not QEMU_10.available:
        pytest.skip("not installed")
    answers = []
    for program in (VHOSTBLK, QEMU_10):
        directory = tmp_path / program.name
        directory.mkdir()
        answers.append(asyncio.run(run_calls(program, directory, SCRIPT)))
    ours, theirs = answers
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == []


async def made(daemon: Daemon, call: Call) -> str | None:
    """Start a job and wait for it; return its error."""
    arguments = call[1]
    daemon.create_image(arguments["job-id"], arguments["options"])
    job = daemon.jobs.find(arguments["job-id"])
    await job.wait()
    assert job.status is JobStatus.CONCLUDED
    job.user_dismiss()
    return job.error


def test_a_failure_leaves_no_file_that_was_not_there(tmp_path: Path) -> None:
    path = tmp_path / "disk"

    async def main() -> tuple[str | None, str | None]:
        async with Daemon() as daemon:
            first = await made(daemon, create("file", filename=str(path), size=1 << 62))
            assert not path.exists()
            path.write_bytes(b"x")
            return first, await made(daemon, create("file", filename=str(path), size=1 << 62))

    assert asyncio.run(main()) == ("Could not resize file: File too large",) * 2
    assert path.read_bytes() == b""


def test_a_file_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious".ljust(MIB, b"\0"))

    async def main() -> str | None:
        node = {"driver": "file", "node-name": "f", "filename": str(path)}
        over = {"driver": "qcow2", "node-name": "q", "file": "g", "read-only": True}
        async with Daemon(blockdevs=[node]) as daemon:
            daemon.create_image("j", qcow2()[1]["options"])
            await daemon.jobs.find("j").wait()
            await daemon.remove_blockdev("f")
            await daemon.add_blockdev({**node, "node-name": "g"})
            await daemon.add_blockdev(over)
            before = path.read_bytes()
            error = await made(daemon, create("file", "k", filename=str(path), size=5))
            assert path.read_bytes() == before
            return error

    error = asyncio.run(main())
    assert error == f'Failed to get "write" lock. Is another process using the image [{path}]?'


def test_what_takes_long_can_be_cancelled(tmp_path: Path) -> None:
    """The pause comes after the first 64 MiB of zeroes; so nothing is left of them."""
    path = tmp_path / "disk"
    call = create("file", filename=str(path), size=65 * MIB, preallocation="full")

    async def main() -> None:
        async with Daemon() as daemon:
            daemon.create_image("j", call[1]["options"])
            job = daemon.jobs.find("j")
            job.user_pause()
            with pytest.raises(JobError, match="verb 'finalize'"):
                await job.user_finalize()
            async with asyncio.timeout(20):
                while job.status is not JobStatus.PAUSED:  # noqa: ASYNC110 (in a thread)
                    await asyncio.sleep(0)
            assert not path.exists()
            job.user_resume()
            await job.user_cancel()
            await job.wait()
            assert job.error == os.strerror(125)
            assert not path.exists()

    asyncio.run(main())


def test_encryption_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()

    async def main() -> str | None:
        async with Daemon() as daemon:
            file = {"driver": "file", "filename": str(path)}
            return await made(daemon, qcow2(file=file, encrypt={"format": "luks"}))

    assert asyncio.run(main()) == "qcow2: encrypted images are not supported ('encrypt')"
    assert path.stat().st_size == 0


def test_filters_pass_preallocation_on(tmp_path: Path) -> None:
    """The image lies in a file below filters, some of which keep what is as long as it."""
    path = tmp_path / "disk"
    path.touch()

    async def main() -> None:
        file: dict[str, Any] = {"driver": "file", "filename": str(path)}
        for driver in ("preallocate", "copy-on-read", "raw"):
            file = {"driver": driver, "file": file}
        async with Daemon() as daemon:
            call = qcow2(file=file, size=4 * MIB, preallocation="falloc")
            assert await made(daemon, call) is None

    asyncio.run(main())
    assert path.stat().st_blocks * 512 >= 4 * MIB
