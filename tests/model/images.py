# SPDX-License-Identifier: Apache-2.0
"""The image files of a program. `qemu-img` makes each kind once; programs get copies."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.model import sparse
from tests.model.content import SECTOR, encode

if TYPE_CHECKING:
    import numpy as np

    from tests.model.program import Options

BASE = "base"
DATA = "data.raw"
#: The token of a backing file's content, as if it had been one write.
BASE_TOKEN = 1

_templates: dict[tuple[str, ...], Path] = {}


def qemu_img(*arguments: object, cwd: Path | None = None) -> str:
    """Run qemu-img; raises AssertionError with its output."""
    words = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def image_options(options: Options) -> str:
    """Return the argument of `qemu-img create -o`."""
    chosen = [
        f"cluster_size={1 << options.cluster_bits}",
        f"compat={'1.1' if options.version == 3 else '0.10'}",
        f"preallocation={options.preallocation}",
    ]
    if options.version == 3:
        chosen.append(f"refcount_bits={options.refcount_bits}")
        chosen.append(f"lazy_refcounts={'on' if options.lazy else 'off'}")
        if options.extended:
            chosen.append("extended_l2=on")
        if options.zstd:
            chosen.append("compression_type=zstd")
        if options.data_file:
            chosen.append(f"data_file={DATA}")
            chosen.append(f"data_file_raw={'on' if options.data_file == 'raw' else 'off'}")
    return ",".join(chosen)


def make_base(directory: Path, options: Options) -> None:
    """Make the backing file, full of data."""
    key = ("base", options.backing_format, str(options.backing))
    where = _template(key)
    path = where / BASE
    if not path.exists():
        raw = where / "raw"
        raw.write_bytes(encode(BASE_TOKEN, 0, options.backing))
        if options.backing_format == "raw":
            raw.rename(path)
        else:
            qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
            raw.unlink()
    sparse.copy(path, directory / BASE)


def make_image(directory: Path, name: str, options: Options, size: int) -> None:
    """Make an image without data; `size` in sectors."""
    if options.format == "raw":
        with (directory / name).open("wb") as file:
            file.truncate(size * SECTOR)
        return
    backed = ["-b", BASE, "-F", options.backing_format] if options.backing else []
    key = ("qcow2", image_options(options), str(size), *backed)
    where = _template(key)
    if not (where / "image").exists():
        made = ["create", "-q", "-u", "-f", "qcow2", "-o", image_options(options), *backed]
        qemu_img(*made, "image", size * SECTOR, cwd=where)
    sparse.copy(where / "image", directory / name)
    if options.data_file:
        sparse.copy(where / DATA, directory / DATA)


def make_overlay(path: Path, options: Options, below: Path, kind: str, size: int) -> None:
    """Make an overlay of `size` sectors without data on another image."""
    chosen = f"cluster_size={1 << options.cluster_bits},compat=1.1"
    if options.extended:
        chosen += ",extended_l2=on"
    made = ["create", "-q", "-u", "-f", "qcow2", "-o", chosen, "-b", below.name, "-F", kind]
    qemu_img(*made, path.name, size * SECTOR, cwd=path.parent)


def _template(key: tuple[str, ...]) -> Path:
    if key not in _templates:
        if not _templates:
            atexit.register(_remove_templates)
        _templates[key] = Path(tempfile.mkdtemp(prefix="vhostblk-model-", dir="/dev/shm"))
    return _templates[key]


def _remove_templates() -> None:
    for path in _templates.values():
        shutil.rmtree(path, ignore_errors=True)


def load(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a file's content."""
    return sparse.load(path)
