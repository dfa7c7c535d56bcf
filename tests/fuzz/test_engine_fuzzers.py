# SPDX-License-Identifier: Apache-2.0
"""The kept inputs of the fuzzers of compiled code, run without a fuzzer: any C compiler will do."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from fuzz.drive import CORPUS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fuzzers")
    subprocess.run([CORPUS.parent / "build", directory, "replay"], check=True)
    return directory


@pytest.mark.parametrize("name", ["chain", "queue", "pr_connection"])
def test_inputs_do_no_harm(programs: Path, name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    ran = subprocess.run(
        [programs / name, *inputs], capture_output=True, encoding="utf-8", check=False
    )
    # Of what goes wrong, the end: the input, and what did not hold.
    assert ran.returncode == 0, "\n".join(ran.stderr.splitlines()[-3:])
    assert ran.stderr.count("\n") == len(inputs)
