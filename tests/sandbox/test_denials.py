# SPDX-License-Identifier: Apache-2.0
"""What fails inside the sandbox, tried there, with and without the kernel's help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vhostblk.sandbox import landlock
from vhostblk.sandbox.kernel import Kernel

ROOT = Path(__file__).parents[2]
PATIENCE = 60

DENIED = ("EPERM", "EACCES")
FILES = ("truncate", "other", "other thread", "new", "passwords")


def have_landlock() -> bool:
    try:
        return landlock.version(Kernel()) >= 3
    except OSError:
        return False


needs_landlock = pytest.mark.skipif(not have_landlock(), reason="the kernel has no Landlock")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("named.img", "other.img"):
        (tmp_path / name).write_bytes(bytes(4096))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "pid").touch()
    return tmp_path


def inside(options: str, directory: Path, *missing: str) -> tuple[dict[str, Any], str]:
    """Return what came of the attempts, and the log."""
    done = run(options, directory, *missing)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def run(options: str, directory: Path, *missing: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.sandbox.inside", options, str(directory), *missing],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@needs_landlock
def test_by_default_without_a_monitor(directory: Path) -> None:
    found, log = inside("", directory)
    for what in ("exec", "fork", "ptrace", "mount", "bpf", "keyctl"):
        assert found[what] == "EPERM", what
    for what in (*FILES, "allowed"):
        assert found[what] == "EACCES", what
    for what in ("thread", "named", "remove", "numpy"):
        assert found[what] == "done", what
    if landlock.version(Kernel()) >= 6:
        assert found["signal"] == "EPERM"
    assert "threads are not restricted" not in log
    assert (directory / "other.img").stat().st_size == 4096


@needs_landlock
def test_a_directory_for_what_comes_later(directory: Path) -> None:
    found, _ = inside(f"on,directory={directory}/sub", directory)
    assert found["allowed"] == "done"
    assert found["other"] == "EACCES"


@needs_landlock
def test_a_plug_in_may_open_files_unless_that_is_denied(directory: Path) -> None:
    found, log = inside("", directory, "plugin")
    assert found["other"] == "done"
    assert found["exec"] == "EPERM"
    assert "node 'p' is a plug-in's" in log
    found, _ = inside("files=deny", directory, "plugin")
    assert found["other"] == "EACCES"


@needs_landlock
def test_a_package_that_is_not_on_the_path_is_imported_later(directory: Path) -> None:
    """An editable installation is found by a hook, not on `sys.path`."""
    package = directory / "elsewhere" / "found_by_hook"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "late.py").touch()
    found, _ = inside("", directory, "hook")
    assert found["late"] == "done"
    assert found["other"] == "EACCES"


def test_programs_and_files_allowed(directory: Path) -> None:
    found, log = inside("on,spawn=allow,files=allow", directory)
    assert found["fork"] == found["other"] == found["other thread"] == "done"
    assert found["bpf"] == found["mount"] == "EPERM"
    assert "spawn=allow" in log
    assert "any file can be opened" in log


def test_off(directory: Path) -> None:
    found, log = inside("off", directory)
    assert found["exec"] == "ENOENT"
    assert found["fork"] == found["other"] == found["signal"] == "done"
    assert log == "sandbox: off; programs can be started, and all capabilities are kept\n"


def test_a_kernel_without_landlock(directory: Path) -> None:
    found, log = inside("", directory, "landlock_create_ruleset")
    assert found["exec"] == "EPERM"
    assert found["other"] == "done"
    assert "any file can be opened: no Landlock: Function not implemented" in log


@pytest.mark.parametrize("options", ["files=deny", "directory=/usr"])
def test_a_promise_that_the_kernel_cant_keep(directory: Path, options: str) -> None:
    done = run(options, directory, "landlock_create_ruleset")
    assert done.returncode == 1
    assert done.stderr.endswith("Landlock is not available: Function not implemented\n")


def test_a_kernel_without_filters(directory: Path) -> None:
    found, log = inside("files=allow", directory, "seccomp")
    assert found["fork"] == "done"
    assert "sandbox: seccomp is not available: Function not implemented" in log
