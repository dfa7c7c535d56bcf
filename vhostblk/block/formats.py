# SPDX-License-Identifier: Apache-2.0
"""Image formats by their signatures.

A guest chooses the content of a raw disk. So a signature says what a file looks like, never what
it is: vhostblk opens no image by it, except where QEMU does (backing files without a format).
"""

from __future__ import annotations

#: How much of the start of a file, and of its end, holds the signatures.
HEAD_BYTES = 2048
TAIL_BYTES = 512

#: Offset, bytes and QAPI name of what QEMU's formats start with; the more exact ones come first.
_HEADS = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)

#: Bytes 512 before the end of a file, and the name: images without a header of their own.
_TAILS = ((b"conectix", "vpc"), (b"koly", "dmg"))

_VMDK_VERSIONS = (b"version=1", b"version=2", b"version=3")


def format_of(head: bytes) -> str:
    """Return the format that `head`, the start of a file, has the signature of; else `raw`."""
    for offset, signature, name in _HEADS:
        if head[offset : offset + len(signature)] == signature:
            return name
    return "vmdk" if _is_vmdk_descriptor(head) else "raw"


def likely_format(head: bytes, tail: bytes) -> str:
    """Return the format that a whole file has a signature of; else `raw`.

    `head` and `tail` are its first `HEAD_BYTES` and its last `TAIL_BYTES`.
    """
    found = format_of(head)
    if found != "raw":
        return found
    return next((name for signature, name in _TAILS if tail.startswith(signature)), "raw")


def _is_vmdk_descriptor(head: bytes) -> bool:
    """Whether a text starts like a VMDK descriptor: comments, blank lines, a version."""
    if not head.startswith((b"#", b"version=")):
        return False
    for line in head.splitlines():
        if line.strip() and not line.startswith(b"#"):
            return line.rstrip() in _VMDK_VERSIONS
    return False
