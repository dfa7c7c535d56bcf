# SPDX-License-Identifier: Apache-2.0
"""The installed kernel that guests boot, and its modules in the order they must be loaded."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from integration.guest.errors import HarnessError

#: Where `scripts/setup` unpacks a kernel on a machine that has none installed.
CACHE = Path(__file__).parents[2] / ".cache" / "kernel"

#: What a guest needs to see a virtio disk with a file system; built-in ones are skipped.
MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "vfat", "nls_cp437", "nls_ascii")


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the directory of its modules."""

    image: Path
    modules: Path
    #: The modules that a guest loads.
    needed: tuple[str, ...] = MODULES

    @property
    def release(self) -> str:
        """Version as `uname -r` gives it."""
        return self.modules.name

    def load_order(self) -> list[Path]:
        """Give the files to load for what is needed, dependencies first."""
        dependencies = self._dependencies()
        built_in = {_module_name(line) for line in self._lines("modules.builtin")}
        order: list[str] = []

        def visit(path: str) -> None:
            for needed in dependencies[path]:
                visit(needed)
            if path not in order:
                order.append(path)

        for name in self.needed:
            paths = [path for path in dependencies if _module_name(path) == name]
            if paths:
                visit(paths[0])
            elif name not in built_in:
                raise HarnessError(f"kernel {self.release} has no module {name}")
        return [self.modules / path for path in order]

    def _dependencies(self) -> dict[str, list[str]]:
        table = {}
        for line in self._lines("modules.dep"):
            path, _, needed = line.partition(":")
            # depmod lists the transitive closure, the one to load first at the end.
            table[path] = needed.split()[::-1]
        return table

    def _lines(self, name: str) -> list[str]:
        return (self.modules / name).read_text().splitlines()


def find_kernel(roots: tuple[Path, ...] = (Path("/"), CACHE)) -> Kernel:
    """Find the newest kernel made for clouds: the one small enough to boot fast.

    An installed one is preferred to the one that `scripts/setup` unpacks where none is.
    """
    for root in roots:
        found = [
            Kernel(image, modules)
            for image in root.glob("boot/vmlinuz-*-cloud-*")
            if (modules := root / "lib/modules" / image.name.removeprefix("vmlinuz-")).is_dir()
            and (modules / "modules.dep").exists()
            and os.access(image, os.R_OK)
        ]
        if found:
            return max(found, key=lambda kernel: _version_key(kernel.release))
    raise HarnessError(f"no cloud kernel in {' or '.join(map(str, roots))}: run scripts/setup")


def read_module(path: Path) -> bytes:
    """Read a module's content, decompressed."""
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            done = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True)
            return done.stdout
    return data


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def _version_key(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]
