# SPDX-License-Identifier: Apache-2.0
"""Later Debian releases, unpacked beside the running system.

| root | has |
|---|---|
| `.cache/trixie` | QEMU 10 (storage daemon, `qemu-img`, `qemu-io`, `qemu-pr-helper`), libblkio |
| `.cache/forky` | a QEMU and a kernel that know zoned virtio disks |
| `.cache/multipath` | multipath-tools, udev and sg3-utils, for guests |

debootstrap resolves dependencies, downloads the packages and checks their signatures. dpkg-deb
unpacks them. Neither needs to be root. The packages are not set up, and nothing is ever run *in* a
root: its own dynamic loader starts its programs, so that they see the same files, sockets and
shared memory as everything else.

A root gets its name when it is complete. A build holds a lock. The remains of an interrupted build
are removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CACHE = Path(__file__).parents[1] / ".cache"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
#: Directory of QEMU's loadable modules, for the variable QEMU_MODULE_DIR.
MODULES = f"{LIBRARIES}/qemu"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
#: The debootstrap script for all later releases, also those that debootstrap doesn't know.
_SCRIPT = "/usr/share/debootstrap/scripts/sid"
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class RootError(Exception):
    """A Debian root doesn't exist and can't be made, or it lacks a program."""


@dataclass(frozen=True, slots=True)
class Root:
    """Packages of one Debian release."""

    name: str
    suite: str
    packages: tuple[str, ...]
    #: Files that a complete root has; patterns are allowed.
    needed: tuple[str, ...]
    #: A program that must start, as a test of the root.
    probe: str
    about: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return CACHE / self.name

    def is_complete(self) -> bool:
        """Return whether it exists and is complete."""
        return _has(self.path, (LOADER, *self.needed))


TRIXIE = Root(
    "trixie",
    "trixie",
    ("qemu-system-common", "qemu-utils", "qemu-block-extra", "libblkio-dev"),
    (
        "usr/bin/qemu-storage-daemon",
        "usr/bin/qemu-img",
        "usr/bin/qemu-io",
        "usr/bin/qemu-pr-helper",
        "usr/include/blkio.h",
        f"{LIBRARIES}/libblkio.so.1",
        f"{MODULES}/block-blkio.so",
    ),
    "qemu-storage-daemon",
    "QEMU 10 and libblkio",
)
FORKY = Root(
    "forky",
    "forky",
    ("qemu-system-x86", "linux-image-cloud-amd64"),
    ("usr/bin/qemu-system-x86_64", "usr/lib/modules/*-cloud-amd64/vmlinuz"),
    "qemu-system-x86_64",
    "a QEMU and a kernel for zoned disks",
)
MULTIPATH = Root(
    "multipath",
    "trixie",
    ("multipath-tools", "udev", "dmsetup", "sg3-utils"),
    (
        "usr/sbin/multipathd",
        "usr/sbin/mpathpersist",
        "usr/bin/udevadm",
        "usr/sbin/dmsetup",
        "usr/bin/sg_persist",
    ),
    "sg_persist",
    "what multipath maps of a guest need",
)
ROOTS = {root.name: root for root in (TRIXIE, FORKY, MULTIPATH)}


def command(program: Path, root: Path | None = None) -> tuple[str, ...]:
    """Return the beginning of a command line that runs `program` with a root's libraries."""
    root = root or TRIXIE.path
    return (str(root / LOADER), "--library-path", str(root / LIBRARIES), str(program))


def program(name: str, root: Path | None = None) -> tuple[str, ...]:
    """Return the same for a program of the root; raises RootError if the root lacks it."""
    root = root or TRIXIE.path
    path = root / "usr/bin" / name
    if not path.exists() or not (root / LOADER).exists():
        raise RootError(f"{root} has no {name}")
    return command(path, root)


def make_root(root: Root = TRIXIE) -> None:
    """Make a root unless it exists (120 to 160 MB to download, half a minute).

    Raises RootError, and then leaves nothing behind.
    """
    if root.is_complete():
        return
    debootstrap()
    CACHE.mkdir(exist_ok=True)
    with _locked(root) as lock:
        if root.is_complete():
            return  # another process has made it meanwhile
        _say(f"unpacking {root.about} from Debian {root.suite} into {root.path}")
        unfinished = root.path.with_name(f"{root.name}.unfinished")
        _remove(unfinished)
        try:
            unfinished.mkdir()
            _download(root, unfinished / "packages", lock)
            _unpack(root, unfinished, lock)
        except BaseException:
            _remove(unfinished)
            raise
        # An incomplete root can be removed, as nothing uses it.
        if root.path.exists():
            root.path.rename(unfinished / "former")
        (unfinished / "root").rename(root.path)
        _remove(unfinished)


def debootstrap() -> str:
    """Return the path of debootstrap; raises RootError."""
    found = shutil.which("debootstrap", path=_SYSTEM_PATH)
    if found is None:
        raise RootError("debootstrap is not installed (run: apt-get install debootstrap)")
    return found


def mirrors() -> list[str]:
    """Return addresses of the Debian archive: the one that apt uses here, then Debian's own."""
    words = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)"]
    try:
        done = subprocess.run(
            [*words, "Created-By: Packages"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return [DEFAULT_MIRROR]
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    own = [address.rstrip("/") for label, _, address in lines if label == "Debian"]
    return list(dict.fromkeys([*own[:1], DEFAULT_MIRROR]))


def _download(root: Root, packages: Path, lock: int) -> None:
    words = [debootstrap(), "--variant=minbase", "--download-only"]
    words += [f"--include={','.join(root.packages)}", root.suite, str(packages)]
    log = CACHE / f"{root.name}.log"
    problems = []
    for mirror in mirrors():
        _remove(packages)
        problem = _run([*words, mirror, _SCRIPT], log, lock)
        if problem is None:
            return
        problems.append(f"{mirror}: {problem}")
    raise RootError(
        f"no Debian root ({root.name}): debootstrap failed: {'; '.join(problems)} (see {log});"
        f" it needs a network that reaches a mirror of Debian {root.suite}"
    )


def _unpack(root: Root, unfinished: Path, lock: int) -> None:
    target = unfinished / "root"
    target.mkdir()
    log = CACHE / f"{root.name}.log"

    def run(words: Sequence[str]) -> None:
        if (problem := _run(words, log, lock)) is not None:
            raise RootError(f"no Debian root ({root.name}): {words[0]} failed: {problem}")

    for package in sorted((unfinished / "packages/var/cache/apt/archives").glob("*.deb")):
        run(["dpkg-deb", "-x", str(package), str(target)])
    for modules in target.glob("usr/lib/modules/*"):
        run(["depmod", "-b", str(target / "usr"), modules.name])
    missing = [name for name in (LOADER, *root.needed) if not _has(target, [name])]
    if missing:
        raise RootError(f"no Debian root ({root.name}): its packages lack {', '.join(missing)}")
    run([*program(root.probe, target), "--version"])


def _run(words: Sequence[str], log: Path, lock: int) -> str | None:
    """Run a program; return None, or a description of the problem.

    The program inherits the lock. So no other build starts while the program outlives this process.
    """
    with log.open("wb") as output:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[lock],
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"},
            check=False,
        )
    if not done.returncode:
        return None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E: ")]
    return (errors or lines or [f"status {done.returncode}"])[-1]


@contextmanager
def _locked(root: Root) -> Iterator[int]:
    """Hold the lock for building a root; yield its descriptor."""
    lock = os.open(CACHE / f"{root.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that makes {root.path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _has(path: Path, names: Sequence[str]) -> bool:
    return all(any(path.glob(name)) for name in names)


def _remove(path: Path) -> None:
    """Remove a directory tree, if there is one."""
    if path.exists():
        shutil.rmtree(path)


def _say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)
