# SPDX-License-Identifier: Apache-2.0
"""Image formats by their signatures. The signatures are in `schema.driver_manifest`.

A guest controls the content of a raw disk, so a signature doesn't prove a format. vhostblk doesn't
probe formats, except where QEMU does (backing files without a format).
"""

from __future__ import annotations

from vhostblk.imports import load
from vhostblk.schema.branches import Parts
from vhostblk.schema.driver_manifest import DEFAULT_FORMAT, DRIVERS

#: Number of bytes to read from the start of a file, and from its end, to find the signatures.
HEAD_BYTES = 2048
TAIL_BYTES = 512

#: The first line of a VMDK descriptor that is neither blank nor a comment.
_VMDK_VERSIONS = (b"version=1", b"version=2", b"version=3")


def format_of(head: bytes) -> str:
    """Return the format that `head`, the start of a file, has the signature of; `raw` if none."""
    for name, driver in DRIVERS.items():
        for offset, signature in driver.signatures:
            if head[offset : offset + len(signature)] == signature:
                return name
    for name, function in Parts(DRIVERS, "looks_like").items():
        if load(function)(head):
            return name
    return DEFAULT_FORMAT


def likely_format(head: bytes, tail: bytes) -> str:
    """Return the format whose signature a whole file has; `raw` if there is none.

    `head` and `tail` are the first `HEAD_BYTES` and the last `TAIL_BYTES` of the file.
    """
    found = format_of(head)
    if found != DEFAULT_FORMAT:
        return found
    tails = (name for name, each in DRIVERS.items() if each.tail and tail.startswith(each.tail))
    return next(tails, DEFAULT_FORMAT)


def is_vmdk_descriptor(head: bytes) -> bool:
    """Whether a text starts like a VMDK descriptor: comments, blank lines, a version."""
    if not head.startswith((b"#", b"version=")):
        return False
    for line in head.splitlines():
        if line.strip() and not line.startswith(b"#"):
            return line.rstrip() in _VMDK_VERSIONS
    return False
