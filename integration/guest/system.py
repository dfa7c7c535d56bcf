# SPDX-License-Identifier: Apache-2.0
"""Systems that guests boot from a disk of their own and install packages on.

`debian` and `miniature` make them. Each has packages on a second disk, which is at `/packages` in
the guest, so that no guest needs the network.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from integration.guest.errors import HarnessError
from integration.guest.image import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Packages:
    """Names, by when they are installed."""

    before: tuple[str, ...]
    meanwhile: tuple[str, ...]
    at_last: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return self.before + self.meanwhile + self.at_last


@dataclass(frozen=True)
class System:
    """Disks, which are not to be written to, and what is done in a guest.

    Each disk holds an ext4 file system, and no partitions. The scripts go by `$packages`.
    """

    #: qcow2.
    root: Path
    #: Raw.
    archive: Path
    packages: Packages
    #: Installs packages.
    install: str
    #: Fails unless packages are there with all their files.
    check: str
    #: Brings an interrupted installation of packages to its end, as an administrator would.
    recover: str


def make_ext4(content: Path, path: Path, size: str) -> None:
    """Make a disk with a directory's content; raises HarnessError."""
    run("mkfs.ext4", "-q", "-d", content, path, size)


def run(*command: str | Path) -> str:
    """Run a program and return what it says; raises HarnessError."""
    done = subprocess.run(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise HarnessError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}")
    return done.stdout
