# SPDX-License-Identifier: Apache-2.0
"""Finds the class of a driver by its QAPI name.

Built-in drivers are imported when first used. Third parties add theirs as plug-ins: they are found
by `schema.plugins`, and written with `vhostblk.plugin`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vhostblk.block.errors import BlockError
from vhostblk.schema import plugins

if TYPE_CHECKING:
    from vhostblk.block.graph.node import BlockNode

_BUILT_IN = {
    "blkdebug": ("vhostblk.block.drivers.blkdebug", "BlkdebugNode"),
    "blklogwrites": ("vhostblk.block.drivers.blklogwrites", "BlklogwritesNode"),
    "blkverify": ("vhostblk.block.drivers.blkverify", "BlkverifyNode"),
    "compress": ("vhostblk.block.drivers.compress", "CompressNode"),
    "copy-before-write": ("vhostblk.block.drivers.copy_before_write", "CopyBeforeWriteNode"),
    "copy-on-read": ("vhostblk.block.drivers.copy_on_read", "CopyOnReadNode"),
    "file": ("vhostblk.block.drivers.file", "FileNode"),
    "host_device": ("vhostblk.block.drivers.host_device", "HostDeviceNode"),
    "null-aio": ("vhostblk.block.drivers.null", "NullAioNode"),
    "null-co": ("vhostblk.block.drivers.null", "NullNode"),
    "preallocate": ("vhostblk.block.drivers.preallocate", "PreallocateNode"),
    "qcow2": ("vhostblk.block.drivers.qcow2.node", "Qcow2Node"),
    "quorum": ("vhostblk.block.drivers.quorum", "QuorumNode"),
    "raw": ("vhostblk.block.drivers.raw", "RawNode"),
    "snapshot-access": ("vhostblk.block.drivers.snapshot_access", "SnapshotAccessNode"),
    "throttle": ("vhostblk.block.drivers.throttle", "ThrottleNode"),
}


def driver_name(options: Any) -> str:
    """Return the QAPI name of the driver that an options struct is for."""
    return str(type(options).__struct_config__.tag)


def is_built_in(name: str) -> bool:
    """Tell whether a driver comes with vhostblk."""
    return name in _BUILT_IN


def driver_class(name: str) -> type[BlockNode]:
    """Return a driver's class; raises BlockError for none, OptionError for a broken plug-in."""
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        found: Any = getattr(importlib.import_module(module), attribute)
    else:
        found = _plugin_class(name)
    node_class: type[BlockNode] = found
    return node_class


def _plugin_class(name: str) -> Any:
    found = plugins.DRIVERS.find_class(name)
    if found is None:
        raise BlockError(f"Unknown driver '{name}'")
    return importlib.import_module("vhostblk.plugin.node").node_class(found)
