# SPDX-License-Identifier: Apache-2.0
"""Commands that start jobs, on vhostblk's daemon and on QEMU's, each waited for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.qmp_block.support import normalized
from tests.qmp_exports.daemons import running

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.qmp_block.support import Call
    from tests.qmp_exports.daemons import Program


async def run_calls(program: Program, directory: Path, calls: Sequence[Call]) -> list[Any]:
    """Run commands, `{dir}` in them being the directory; return the answers.

    After one that started a job come `query-jobs`, once it has concluded, and `job-dismiss`.
    """
    answers = []
    async with running(program, directory / "log") as session:
        for name, arguments in calls:
            placed = json.loads(json.dumps(arguments).replace("{dir}", str(directory)))
            answers.append(await session.run(name, placed))
            if "job-id" not in arguments or "return" not in answers[-1]:
                continue
            while (await session.wait_event("JOB_STATUS_CHANGE"))["status"] != "concluded":
                pass
            answers.append(await session.run("query-jobs"))
            answers.append(await session.run("job-dismiss", {"id": arguments["job-id"]}))
    return [
        json.loads(json.dumps(normalized(answer)).replace(str(directory), "{dir}"))
        for answer in answers
    ]


def create(driver: str, job_id: str = "j", **options: Any) -> Call:
    """Return a `blockdev-create`."""
    members = {name.replace("_", "-"): value for name, value in options.items()}
    return "blockdev-create", {"job-id": job_id, "options": {"driver": driver, **members}}
