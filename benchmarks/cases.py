# SPDX-License-Identifier: Apache-2.0
"""The cases of the comparison, and the image files they need."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.daemons import Backend, Disk

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class Case:
    """One row group of the table.

    `place` is "null", "file" or "memory"; `image`: "" is raw, "allocated" a qcow2 image full of
    data; the others are qcow2 images with nothing in them: "empty", "backed" by a file full of
    data, "sparse" by one that is a hole. `aio` is what serves the QEMU daemon best in the case;
    `targets` are the ratios asked for, a depth each.
    """

    name: str
    place: str
    image: str = ""
    depths: tuple[int, ...] = (1, 32, 128)
    write: bool = False
    direct: bool = False
    block_size: int = 4096
    sequential: bool = False
    queues: int = 1
    think_us: float = 0.0
    aio: str = "io_uring"
    targets: tuple[tuple[int, float], ...] = ()

    @property
    def allocates(self) -> bool:
        """Whether requests use an image up, so that each run needs a new one."""
        return self.image in ("empty", "backed", "sparse")

    def limit(self, size: int) -> int:
        """Return how many requests a run makes at most; 0: as many as there is time for.

        One that allocates ends before many of its requests find a cluster that is there.
        """
        if not self.allocates:
            return 0
        return size // self.block_size if self.sequential else size // CLUSTER_SIZE // 8

    def target(self, depth: int) -> float | None:
        """Return the ratio asked for at a depth."""
        return dict(self.targets).get(depth)


def _targets(*ratios: float) -> tuple[tuple[int, float], ...]:
    return tuple(zip((1, 32, 128), ratios, strict=True))


CASES = (
    Case("null-read", "null", targets=_targets(5, 2.5, 2.5)),
    Case("null-write", "null", write=True, targets=_targets(5, 2.5, 2.5)),
    # A front-end that takes 2 us between a completion and its next request, as a guest does: the
    # QEMU daemon has then gone to sleep, and has to be woken.
    Case("null-read-think", "null", think_us=2.0),
    Case("cache-read", "file", targets=_targets(1, 5, 5)),
    Case("cache-write", "file", write=True, targets=_targets(1, 1.2, 1.2)),
    Case("tmpfs-read", "memory", aio="threads", targets=_targets(2, 2.5, 2.5)),
    Case("tmpfs-write", "memory", write=True, aio="threads", targets=_targets(2, 2.5, 2.5)),
    Case("direct-read", "file", direct=True, targets=_targets(1, 1, 1)),
    # Requests that follow each other and arrive together are merged into one system call.
    Case("sequential-read", "file", sequential=True),
    Case("sequential-write", "file", write=True, sequential=True),
    Case(
        "sequential-read-128k",
        "file",
        depths=(1, 8),
        block_size=128 << 10,
        sequential=True,
        targets=((1, 1), (8, 1.5)),
    ),
    Case("qcow2-read", "file", "allocated", depths=(1, 32), targets=((32, 4),)),
    Case("qcow2-write", "file", "allocated", depths=(1, 32), write=True, targets=((32, 1.2),)),
    Case(
        "qcow2-allocate-sequential",
        "file",
        "empty",
        depths=(8, 32),
        write=True,
        block_size=64 << 10,
        sequential=True,
        targets=((8, 1), (32, 1)),
    ),
    Case(
        "qcow2-allocate-sequential-4k",
        "file",
        "empty",
        depths=(32,),
        write=True,
        sequential=True,
        targets=((32, 1),),
    ),
    Case("qcow2-allocate-random", "file", "backed", (32,), write=True, targets=((32, 0.8),)),
    Case("qcow2-allocate-random-sparse", "file", "sparse", (32,), write=True, targets=((32, 0.8),)),
)

#: Of an empty image's disk.
EMPTY_SIZE = 1 << 40
#: Of qcow2 images.
CLUSTER_SIZE = 64 << 10


def case_names() -> list[str]:
    """Names to choose from."""
    return [case.name for case in CASES]


def chosen_cases(names: list[str], depths: list[int] | None, queues: int) -> list[Case]:
    """Return the named cases (all for none) with other depths and queues where asked for."""
    cases = [case for case in CASES if not names or case.name in names]
    if depths:
        cases = [replace(case, depths=tuple(depths)) for case in cases]
    if queues != 1:
        cases = [replace(case, queues=queues, targets=()) for case in cases]
    return cases


def make_image(path: Path, size: int) -> None:
    """Make a file full of data that has no holes, does not compress, and is in the page cache."""
    if path.exists() and path.stat().st_size == size and not _has_holes(path):
        _settle(path)
        return
    chunk = os.urandom(CHUNK)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // CHUNK):
            file.write(chunk)
        os.fsync(file.fileno())


def make_qcow2(path: Path, kind: str, size: int) -> None:
    """Make a qcow2 image of a kind (see `Case`), and what it is made of beside it."""
    path.unlink(missing_ok=True)
    if kind == "allocated":
        raw = path.with_suffix(".img")
        make_image(raw, size)
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
        _settle(path)
    elif kind == "empty":
        _qemu_img("create", "-q", "-f", "qcow2", str(path), str(EMPTY_SIZE))
    else:
        base = path.with_name(f"{kind}.base")
        if kind == "backed":
            make_image(base, size)
        else:
            with base.open("wb") as file:
                file.truncate(size)
        _qemu_img("create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(path))


def _qemu_img(*arguments: str) -> None:
    try:
        subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise OSError(f"qemu-img: {error}") from error


def _has_holes(path: Path) -> bool:
    status = path.stat()
    return status.st_blocks * 512 < status.st_size


def _settle(path: Path) -> None:
    """Write back what earlier cases left dirty, and read everything into the page cache."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        while file.read(CHUNK):
            pass


def image_path(case: Case, backend: Backend, directories: dict[str, Path]) -> Path:
    """Say where a daemon's image is."""
    path = directories[case.place] / f"{backend.name.replace(':', '-')}.img"
    return path.with_suffix(".qcow2") if case.image and not backend.raw else path


def disk_for(case: Case, backend: Backend, directories: dict[str, Path], size: int) -> Disk:
    """Describe the disk of a case; makes the image, one for each daemon (they lock their files)."""
    if case.place == "null":
        return Disk("null-co", (f"size={size}",), queues=case.queues)
    path = image_path(case, backend, directories)
    if path.suffix == ".qcow2":
        make_qcow2(path, case.image, size)
        return Disk("qcow2", ("file.driver=file", f"file.filename={path}"), queues=case.queues)
    make_image(path, size)
    options = [f"filename={path}"]
    if case.direct:
        options.append("cache.direct=on")
    return Disk("file", tuple(options), queues=case.queues)
