# SPDX-License-Identifier: Apache-2.0
"""QEMU itself as the client: its `pr-manager-helper` object finds our helper."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.process import PATIENCE, wait_until
from tests.pr.programs import running

if TYPE_CHECKING:
    from pathlib import Path

QEMU = "qemu-system-x86_64"
COMMANDS = "".join(
    json.dumps({"execute": name}) for name in ("qmp_capabilities", "query-pr-managers", "quit")
)


@pytest.mark.skipif(shutil.which(QEMU) is None, reason="needs qemu-system-x86_64")
def test_qemus_manager_connects(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with running(tmp_path, "-T", f"pr_helper_*,file={trace}") as helper:
        words = ["-machine", "none", "-display", "none", "-nodefaults", "-qmp", "stdio"]
        manager = f"pr-manager-helper,id=manager,path={helper.path}"
        done = subprocess.run(
            [QEMU, *words, "-object", manager],
            input=COMMANDS,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert {"return": [{"connected": True, "id": "manager"}]} in answers
        wait_until(lambda: "pr_helper_disconnect" in trace.read_text())
        assert helper.end() == "", "the features were agreed on"
