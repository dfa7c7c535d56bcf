# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system: busybox, e2fsprogs and kernel modules of the host, and `init.sh`.

Built once and kept in `.cache/`; the name holds a digest of everything that went in, so that a
changed script or an upgraded package builds a new one. Not compressed: unpacking under TCG costs
more than loading.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from integration.guest.cpio import CpioWriter
from integration.guest.errors import HarnessError
from integration.guest.kernel import Kernel, read_module

if TYPE_CHECKING:
    from collections.abc import Mapping

CACHE = Path(__file__).parents[2] / ".cache" / "integration"
PROGRAMS = ("mkfs.ext4", "e2fsck")
_INIT = Path(__file__).parent / "init.sh"
_BUILDER = Path(__file__)
_MKE2FS_CONF = Path("/etc/mke2fs.conf")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def initramfs(
    kernel: Kernel, more: tuple[str, ...] = (), others: Mapping[str, Path] | None = None
) -> Path:
    """Build the archive for `kernel`, with `more` programs, unless it exists; give its path.

    `others` are more files: their names in the guest, and where they are here.
    """
    busybox = find_program("busybox")
    programs = {f"sbin/{name}": find_program(name) for name in (*PROGRAMS, *more)}
    libraries = {}
    for program in (busybox, *programs.values()):
        libraries.update(shared_libraries(program))
    libraries.update(others or {})
    if _MKE2FS_CONF.exists():
        libraries["etc/mke2fs.conf"] = _MKE2FS_CONF
    modules = kernel.load_order()
    sources = [_INIT, _BUILDER, busybox, *programs.values(), *libraries.values(), *modules]
    path = CACHE / f"initramfs-{kernel.release}-{_digest(sources)}.cpio"
    if not path.exists():
        files = {"init": _INIT, "bin/busybox": busybox, **programs, **libraries}
        _build(path, files, modules)
    return path


def _build(path: Path, files: dict[str, Path], modules: list[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several test processes may build at once: each writes its own file, the last rename stays.
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as stream:
        archive = CpioWriter(stream)
        archive.directory("dev")
        archive.character_device("dev/console", 5, 1)
        for name, source in files.items():
            archive.file(name, source.read_bytes(), mode=0o755)
        for position, module in enumerate(modules):
            name = module.name.partition(".")[0]
            archive.file(f"modules/{position:02}-{name}.ko", read_module(module))
        archive.close()
    unfinished.replace(path)


def find_program(name: str) -> Path:
    """Find a program of this machine; raises HarnessError where it is not installed."""
    found = shutil.which(name, path=_SYSTEM_PATH)
    if found is None:
        raise HarnessError(f"{name} is not installed (scripts/setup installs it)")
    return Path(found)


def shared_libraries(program: Path) -> dict[str, Path]:
    """Name in the guest -> file on the host, for what `ldd` says, the dynamic linker included."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    paths = re.findall(r"(/\S+) \(0x", done.stdout)
    return {path.lstrip("/"): Path(path).resolve() for path in paths}


def _digest(sources: list[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        status = source.stat()
        digest.update(f"{source} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
