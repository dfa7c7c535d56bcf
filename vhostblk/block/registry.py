# SPDX-License-Identifier: Apache-2.0
"""Finds the class of a driver by its QAPI name.

Built-in drivers are imported when first used. Third parties add theirs through the entry point
group `vhostblk.drivers`, which is searched only for names that are not built in.
"""

from __future__ import annotations

import importlib
from typing import Any

from vhostblk.block.errors import BlockError
from vhostblk.block.node import BlockNode

ENTRY_POINT_GROUP = "vhostblk.drivers"

_BUILT_IN = {
    "compress": ("vhostblk.block.drivers.compress", "CompressNode"),
    "copy-before-write": ("vhostblk.block.drivers.copy_before_write", "CopyBeforeWriteNode"),
    "copy-on-read": ("vhostblk.block.drivers.copy_on_read", "CopyOnReadNode"),
    "blkdebug": ("vhostblk.block.drivers.blkdebug", "BlkdebugNode"),
    "blklogwrites": ("vhostblk.block.drivers.blklogwrites", "BlklogwritesNode"),
    "blkverify": ("vhostblk.block.drivers.blkverify", "BlkverifyNode"),
    "file": ("vhostblk.block.drivers.file", "FileNode"),
    "host_device": ("vhostblk.block.drivers.host_device", "HostDeviceNode"),
    "null-aio": ("vhostblk.block.drivers.null", "NullAioNode"),
    "null-co": ("vhostblk.block.drivers.null", "NullNode"),
    "preallocate": ("vhostblk.block.drivers.preallocate", "PreallocateNode"),
    "quorum": ("vhostblk.block.drivers.quorum", "QuorumNode"),
    "raw": ("vhostblk.block.drivers.raw", "RawNode"),
    "snapshot-access": ("vhostblk.block.drivers.snapshot_access", "SnapshotAccessNode"),
    "throttle": ("vhostblk.block.drivers.throttle", "ThrottleNode"),
}


def driver_name(options: Any) -> str:
    """Return the QAPI name of the driver that an options struct is for."""
    return str(type(options).__struct_config__.tag)


def driver_class(name: str) -> type[BlockNode]:
    """Return a driver's class; raises BlockError when there is none."""
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        found: Any = getattr(importlib.import_module(module), attribute)
    else:
        found = _load_plugin(name)
    node_class: type[BlockNode] = found
    return node_class


def _load_plugin(name: str) -> Any:
    from importlib.metadata import entry_points  # 20 ms

    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            found = entry_point.load()
        except Exception as error:
            raise BlockError(f"Driver '{name}' can't be loaded: {error}") from error
        if not (isinstance(found, type) and issubclass(found, BlockNode)):
            raise BlockError(f"Driver '{name}' ({entry_point.value}) is not a BlockNode class")
        return found
    raise BlockError(f"Unknown driver '{name}'")
