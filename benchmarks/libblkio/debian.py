# SPDX-License-Identifier: Apache-2.0
"""Minimal Debian systems by debootstrap, from the mirror that apt uses; it needs root.

`.cache/trixie` is one beside the running system, for what Debian 12 has not: libblkio and QEMU 10.
Nothing is ever run *in* it: programs are started by the root's own dynamic loader, so that they see
the same files, sockets and shared memory as everything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CACHE = Path(__file__).parents[2] / ".cache"
ROOT = CACHE / "trixie"
SUITE = "trixie"
PACKAGES = ("qemu-system-common", "qemu-utils", "libblkio-dev")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
DEFAULT_MIRROR = "http://deb.debian.org/debian"


class RootError(Exception):
    """The Debian root isn't there and can't be made, or lacks a program."""


def has_root() -> bool:
    """Tell whether the root is complete."""
    return (ROOT / "usr/include/blkio.h").exists()


def make_root() -> None:
    """Make the root unless it is there (340 MB, a minute or two); raises RootError."""
    if not has_root():
        bootstrap(SUITE, ROOT, PACKAGES)


def bootstrap(suite: str, target: Path, packages: Sequence[str] = ()) -> None:
    """Make a directory of a minimal Debian system; raises RootError, and leaves nothing then."""
    debootstrap = shutil.which("debootstrap", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if debootstrap is None:
        raise RootError(f"no Debian root ({suite}): debootstrap is not installed")
    if os.geteuid():
        raise RootError(f"no Debian root ({suite}): debootstrap needs root (once)")
    CACHE.mkdir(exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [debootstrap, "--variant=minbase"]
    if packages:
        command.append(f"--include={','.join(packages)}")
    log = CACHE / "debootstrap.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, suite, str(unfinished), _mirror()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        words = log.read_text(errors="replace").strip().splitlines()[-1:]
        shutil.rmtree(unfinished, ignore_errors=True)
        raise RootError(
            f"no Debian root ({suite}): debootstrap failed: {' '.join(words)} (see {log})"
        )
    shutil.rmtree(unfinished / "var/cache/apt/archives", ignore_errors=True)
    unfinished.rename(target)


def _mirror() -> str:
    """Return the address of the Debian archive that apt is configured for."""
    try:
        done = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return DEFAULT_MIRROR
    for line in done.stdout.splitlines():
        label, _, address = line.partition(" ")
        if label == "Debian":
            return address
    return DEFAULT_MIRROR


def command(program: Path, root: Path = ROOT) -> tuple[str, ...]:
    """Return the beginning of a command line that runs `program` with the root's libraries."""
    return (str(root / LOADER), "--library-path", str(root / LIBRARIES), str(program))


def program(name: str, root: Path = ROOT) -> tuple[str, ...]:
    """Return the same for a program that the root has; raises RootError where it has not."""
    path = root / "usr/bin" / name
    if not path.exists() or not (root / LOADER).exists():
        raise RootError(f"{root} has no {name}")
    return command(path, root)
