# SPDX-License-Identifier: Apache-2.0
"""Cases about filters over qcow2 images: what is copied, compressed, or allocated in advance."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.filters.cases import KIB, MIB
from tests.filters.harness import (
    Case,
    add,
    delete,
    discard,
    export,
    file,
    flush,
    qmp,
    read,
    status,
    unexport,
    write,
    zero,
)
from tests.qmp_exports.daemons import QEMU_10

#: In pieces of 16 KiB: data, with some that is zero.
BASE = b"".join(bytes([number % 5 * 0x11]) * (16 * KIB) for number in range(48))


@cache
def image(size: int = MIB, *options: str, base: str = "", base_format: str = "raw") -> bytes:
    """Return a qcow2 image, as qemu-img makes it, that lies on `base`."""
    if not QEMU_10.available or shutil.which("qemu-img") is None:
        return b""  # nothing will be run
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "image")
        backing = ["-u", "-b", base, "-F", base_format] if base else []
        chosen = ["-o", ",".join(options)] if options else []
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *chosen, *backing, path, str(size)]
        subprocess.run(command, check=True)
        return Path(path).read_bytes()


def on_base(name: str = "q", image: str = "disk.qcow2", backing: Any = "b", **members: Any) -> Any:
    """Add an image and what it lies on."""
    return add(
        driver="qcow2", node_name=name, file=file(f"{name}f", image), backing=backing, **members
    )


BACKING = add(**file("b", "base", read_only=True))
READS = [
    read("e", 20 * KIB, 512),
    read("e", 100 * KIB, 60 * KIB),
    read("e", 300 * KIB + 1, 7),
    status("e", 0, MIB),
    read("e", 700 * KIB, 200 * KIB),  # where the base ends
    write("e", 450 * KIB, 4 * KIB, 0x77),
    read("e", 440 * KIB, 30 * KIB),
    zero("e", 512 * KIB, 70 * KIB),
    read("e", 560 * KIB, 40 * KIB),
    discard("e", 0, 64 * KIB),
    read("e", 0, 64 * KIB),
    flush("e"),
    status("e", 0, MIB),
]


def copy_on_read(name: str, *options: str) -> Case:
    """Read here and there through the filter."""
    return Case(
        f"copy-on-read-over-qcow2-{name}",
        {"base": BASE, "disk.qcow2": image(MIB, *options, base="base")},
        [
            BACKING,
            on_base(discard="unmap"),
            add(driver="copy-on-read", node_name="c", file="q", discard="unmap"),
            export("e", "c"),
            *READS,
            unexport("e"),
            delete("c"),
            delete("q"),
        ],
    )


BOTTOM = Case(
    "copy-on-read-down-to-the-bottom",
    {
        "base": BASE,
        "mid.qcow2": image(base="base"),
        "disk.qcow2": image(base="mid.qcow2", base_format="qcow2"),
    },
    [
        BACKING,
        on_base("m", "mid.qcow2"),
        export("m", "m"),
        write("m", 128 * KIB, 64 * KIB, 0x99),
        write("m", 300 * KIB, 512, 0x98),
        zero("m", 512 * KIB, 64 * KIB),
        unexport("m"),
        delete("m"),
        on_base("m", "mid.qcow2", read_only=True),
        on_base(backing="m"),
        add(driver="copy-on-read", node_name="c", file="q", bottom="b2"),
        add(driver="copy-on-read", node_name="c", file="q", bottom="m"),
        export("e", "c"),
        read("e", 0, 100 * KIB),
        read("e", 130 * KIB, 512),
        read("e", 290 * KIB, 60 * KIB),
        read("e", 512 * KIB, 512),
        status("e", 0, MIB),
        delete("m"),
        unexport("e"),
        delete("c"),
    ],
)


def compress(name: str, *options: str) -> Case:
    """Write here and there through the filter."""
    return Case(
        f"compress-over-qcow2-{name}",
        {"base": BASE, "disk.qcow2": image(MIB, *options, base="base")},
        [
            BACKING,
            on_base(discard="unmap"),
            add(driver="compress", node_name="c", file="q", discard="unmap"),
            export("e", "c"),
            write("e", 0, 64 * KIB, 0x66),
            write("e", 70 * KIB, 512, 0x67),
            write("e", 128 * KIB, 80 * KIB, 0x68),
            write("e", MIB - 16 * KIB, 12 * KIB, 0x69),
            zero("e", 256 * KIB, 64 * KIB),
            zero("e", 330 * KIB, 10 * KIB),
            read("e", 0, 400 * KIB),
            write("e", 0, 64 * KIB, 0x66, but="QEMU fails to write a cluster twice"),
            discard("e", 128 * KIB, 64 * KIB),
            status("e", 0, 400 * KIB),
            flush("e"),
            read("e", 0, MIB),
            unexport("e"),
            export("e", "q"),
            write("e", 10 * KIB, 4 * KIB, 0x6B),  # no longer compressed
            unexport("e"),
            delete("c"),
            delete("q"),
        ],
    )


COMPRESS_AND_COPY = Case(
    "compress-below-copy-on-read",
    {"base": BASE, "disk.qcow2": image(base="base")},
    [
        BACKING,
        on_base(),
        add(driver="compress", node_name="z", file="q"),
        add(driver="copy-on-read", node_name="c", file="z"),
        export("e", "c"),
        *READS,
        unexport("e"),
        delete("c"),
    ],
)

FLEECING = Case(
    "copy-before-write-to-qcow2",
    {"disk": BASE, "target.qcow2": image(len(BASE), "cluster_size=131072")},
    [
        add(**file("f", "disk", discard="unmap")),
        on_base("t", "target.qcow2", backing="f", discard="unmap"),
        add(driver="copy-before-write", node_name="c", file="f", target="t", discard="unmap"),
        add(driver="snapshot-access", node_name="s", file="c", discard="unmap"),
        export("e", "c"),
        export("s", "s"),
        write("e", 100 * KIB, 512, 0x22),
        zero("e", 500 * KIB, 100 * KIB, unmap=True),
        discard("e", 300 * KIB, 8 * KIB),
        read("s", 0, len(BASE)),
        read("e", 0, len(BASE)),
        status("s", 0, len(BASE)),
        discard("s", 0, 256 * KIB),
        read("s", 0, 512),
        read("s", 256 * KIB, 512),
        unexport("s"),
        unexport("e"),
        delete("s"),
        delete("c"),
        delete("t"),
    ],
)

PREALLOCATE: dict[str, Any] = {
    "driver": "preallocate",
    "node_name": "p",
    "file": "f",
    "prealloc_align": 64 * KIB,
    "prealloc_size": 4 * MIB,
}
PREALLOCATED = Case(
    "preallocate-below-qcow2",
    {"disk.qcow2": image()},
    [
        add(**file("f", "disk.qcow2")),
        add(**PREALLOCATE),
        add(driver="qcow2", node_name="q", file="p"),
        export("e", "q"),
        *(write("e", number * 128 * KIB, 8 * KIB, 0x50 + number) for number in range(8)),
        flush("e"),
        zero("e", 256 * KIB, 64 * KIB),
        read("e", 0, MIB),
        status("e", 0, MIB),
        unexport("e"),
        qmp("block_resize", {"node-name": "q", "size": 2 * MIB}),
        export("e", "q"),
        write("e", 2 * MIB - 8 * KIB, 8 * KIB, 0x60),
        unexport("e"),
        delete("q"),
        delete("p"),
    ],
)

CASES = [
    copy_on_read("64k"),
    copy_on_read("4k", "cluster_size=4096"),
    copy_on_read("subclusters", "extended_l2=on", "cluster_size=65536"),
    BOTTOM,
    compress("64k"),
    compress("4k", "cluster_size=4096"),
    compress("zstd", "compression_type=zstd"),
    COMPRESS_AND_COPY,
    FLEECING,
    PREALLOCATED,
]
