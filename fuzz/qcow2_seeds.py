# SPDX-License-Identifier: Apache-2.0
"""Makes the first inputs of `fuzz.qcow2`, of images by QEMU's tools.

`python -m fuzz.qcow2_seeds DIRECTORY`
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.qcow2 import encode

#: Name, size, options of `qemu-img create`.
_FORMS = (
    ("small", "48k", "cluster_size=512"),
    ("plain", "256k", "cluster_size=4k"),
    ("large", "1M", "cluster_size=64k"),
    ("huge", "8M", "cluster_size=2M"),
    ("refcount1", "48k", "cluster_size=512,refcount_bits=1"),
    ("refcount64", "64k", "cluster_size=1k,refcount_bits=64"),
    ("subclusters", "256k", "cluster_size=16k,extended_l2=on"),
    ("lazy", "64k", "cluster_size=1k,lazy_refcounts=on"),
    ("old", "128k", "cluster_size=4k,compat=0.10"),
    ("metadata", "64k", "cluster_size=1k,preallocation=metadata"),
    ("zstd", "128k", "cluster_size=4k,compression_type=zstd"),
    ("data", "64k", "cluster_size=1k,data_file=data.bin"),
    ("rawdata", "64k", "cluster_size=1k,data_file=raw.bin,data_file_raw=on"),
)


def _run(*words: object) -> None:
    subprocess.run([*map(str, words)], check=True, capture_output=True)


def _io(path: Path, *commands: str) -> None:
    _run("qemu-io", "-f", "qcow2", path, *(word for each in commands for word in ("-c", each)))


def _make(directory: Path, name: str, size: str, form: str) -> Path:
    path = directory / f"{name}.qcow2"
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-o", form, path, size)
    # Zeroes, written as data, so that inputs are small.
    writes = ["write -q -P 0 0 9k", "write -q -z 16k 4k", "write -q -P 2 30k 16"]
    if name == "zstd":
        writes.append("write -q -c -P 3 20k 4k")
    _io(path, *writes)
    if name not in ("refcount1", "data", "rawdata"):
        _run("qemu-img", "snapshot", "-c", "first", path)
        _io(path, "write -q -P 0 1k 2k", "discard -q 30k 2k")
    if name in ("plain", "small", "subclusters"):
        _run("qemu-img", "bitmap", "--add", "--disable", "-g", "512", path, "b0")
    if name == "plain":
        _io(path, "write -q -c -P 4 200k 8k")
    return path


def _with_backing(directory: Path) -> Path:
    base, path = directory / "base.raw", directory / "overlay.qcow2"
    base.write_bytes(bytes(65536))
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=1k",
         "-b", base.name, "-F", "raw", path)  # fmt: skip
    _io(path, "write -q -P 0 3k 3k")
    return path


def _dirty(directory: Path) -> Path:
    """Make an image whose refcounts have to be repaired."""
    path = _make(directory, "dirty", "64k", "cluster_size=1k,lazy_refcounts=on")
    image = bytearray(path.read_bytes())
    image[79] |= 1
    path.write_bytes(image)
    return path


def main(target: Path) -> None:
    """Write two inputs an image: one that only reads, one that also writes."""
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as where:
        directory = Path(where)
        images = [_make(directory, *form) for form in _FORMS]
        images += [_with_backing(directory), _dirty(directory)]
        for path in images:
            image = path.read_bytes()
            for flags in (0, 1):
                script = bytes(rng.randrange(256) for _ in range(36))
                (target / f"{path.stem}-{flags}").write_bytes(encode(image, flags, script))
    print(f"{2 * len(images)} inputs in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
