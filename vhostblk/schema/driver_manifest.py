# SPDX-License-Identifier: Apache-2.0
"""The table of drivers. No other module names a driver, except the driver's own.

An entry has references to the driver's parts, `module:name`, as an entry point has. A part is
imported when it is first used. `schema.plugins` finds drivers of other packages.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_NODES = "vhostblk.block.drivers"
_OPTIONS = "vhostblk.schema.drivers"


class Driver(NamedTuple):
    """References to the parts of a driver, "" for none, and facts about its format.

    A driver without `options` is not available here.
    """

    #: A subclass of `BlockdevOptions`.
    options: str = ""
    #: A subclass of `BlockNode`.
    node: str = ""
    #: A subclass of `BlockdevCreateOptions`, and `create(options, graph, pause)`, a coroutine
    #: function that creates an image; it raises BlockError or OSError.
    create_options: str = ""
    create: str = ""
    #: A subclass of `BlockdevAmendOptions`.
    amend_options: str = ""
    #: A subclass of `BlockStatsSpecific`.
    statistics: str = ""
    #: The structs of the data of the driver's own events, by the events' names.
    events: Mapping[str, str] = MappingProxyType({})
    #: What files of the format have, and at which offset; for formats that are not here, too.
    signatures: tuple[tuple[int, bytes], ...] = ()
    #: What files without a header of their own have 512 bytes before their end.
    tail: bytes = b""
    #: A function that tells by the start of a file whether it is of the format.
    looks_like: str = ""
    #: The short form of the command line opens images of the format.
    short_form: bool = False
    #: The message for users who name a driver that is not available.
    refusal: str = ""


_ABSENT = Driver()

#: QEMU's drivers in the order of its `BlockdevDriver`. The first whose signature is found counts.
DRIVERS: dict[str, Driver] = {
    "blkdebug": Driver(
        f"{_OPTIONS}.blkdebug:BlockdevOptionsBlkdebug", f"{_NODES}.blkdebug:BlkdebugNode"
    ),
    "blklogwrites": Driver(
        f"{_OPTIONS}.blklogwrites:BlockdevOptionsBlklogwrites",
        f"{_NODES}.blklogwrites:BlklogwritesNode",
    ),
    "blkreplay": _ABSENT,
    "blkverify": Driver(
        f"{_OPTIONS}.blkverify:BlockdevOptionsBlkverify", f"{_NODES}.blkverify:BlkverifyNode"
    ),
    "bochs": Driver(signatures=((0, b"Bochs Virtual HD Image"),)),
    "cloop": Driver(signatures=((0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),)),
    "compress": Driver(
        f"{_OPTIONS}.filters:BlockdevOptionsCompress", f"{_NODES}.compress:CompressNode"
    ),
    "copy-before-write": Driver(
        f"{_OPTIONS}.filters:BlockdevOptionsCbw", f"{_NODES}.copy_before_write:CopyBeforeWriteNode"
    ),
    "copy-on-read": Driver(
        f"{_OPTIONS}.filters:BlockdevOptionsCor", f"{_NODES}.copy_on_read:CopyOnReadNode"
    ),
    "dmg": Driver(tail=b"koly"),
    "file": Driver(
        f"{_OPTIONS}.file:BlockdevOptionsFile",
        f"{_NODES}.file:FileNode",
        create_options=f"{_OPTIONS}.file_create:BlockdevCreateOptionsFile",
        create=f"{_NODES}.create_file:create",
        statistics=f"{_OPTIONS}.file_query:BlockStatsSpecificFile",
    ),
    "snapshot-access": Driver(
        f"{_OPTIONS}.filters:BlockdevOptionsSnapshotAccess",
        f"{_NODES}.snapshot_access:SnapshotAccessNode",
    ),
    "ftp": _ABSENT,
    "ftps": _ABSENT,
    "gluster": _ABSENT,
    "host_cdrom": _ABSENT,
    "host_device": Driver(
        f"{_OPTIONS}.file:BlockdevOptionsHostDevice",
        f"{_NODES}.host_device:HostDeviceNode",
        statistics=f"{_OPTIONS}.file_query:BlockStatsSpecificHostDevice",
    ),
    "http": _ABSENT,
    "https": _ABSENT,
    "io_uring": _ABSENT,
    "iscsi": _ABSENT,
    "luks": Driver(
        amend_options=f"{_OPTIONS}.luks_amend:BlockdevAmendOptionsLUKS",
        signatures=((0, b"LUKS\xba\xbe"),),
    ),
    "nbd": _ABSENT,
    "nfs": _ABSENT,
    "null-aio": Driver(f"{_OPTIONS}.null:BlockdevOptionsNullAio", f"{_NODES}.null:NullAioNode"),
    "null-co": Driver(f"{_OPTIONS}.null:BlockdevOptionsNull", f"{_NODES}.null:NullNode"),
    "nvme": _ABSENT,
    "nvme-io_uring": _ABSENT,
    "parallels": Driver(
        signatures=(
            (0, b"WithoutFreeSpace"),
            (0, b"WithouFreSpacExt"),
        )
    ),
    "preallocate": Driver(
        f"{_OPTIONS}.filters:BlockdevOptionsPreallocate", f"{_NODES}.preallocate:PreallocateNode"
    ),
    "qcow": Driver(signatures=((0, b"QFI\xfb\0\0\0\1"),)),
    "qcow2": Driver(
        f"{_OPTIONS}.qcow2:BlockdevOptionsQcow2",
        f"{_NODES}.qcow2.node:Qcow2Node",
        create_options=f"{_OPTIONS}.qcow2_create:BlockdevCreateOptionsQcow2",
        create=f"{_NODES}.qcow2.create:create",
        amend_options=f"{_OPTIONS}.qcow2_amend:BlockdevAmendOptionsQcow2",
        signatures=((0, b"QFI\xfb"),),
        short_form=True,
    ),
    "qed": Driver(signatures=((0, b"QED\0"),)),
    "quorum": Driver(
        f"{_OPTIONS}.quorum:BlockdevOptionsQuorum",
        f"{_NODES}.quorum:QuorumNode",
        events={
            "QUORUM_FAILURE": f"{_OPTIONS}.quorum:QuorumFailure",
            "QUORUM_REPORT_BAD": f"{_OPTIONS}.quorum:QuorumReportBad",
        },
    ),
    "raw": Driver(f"{_OPTIONS}.raw:BlockdevOptionsRaw", f"{_NODES}.raw:RawNode", short_form=True),
    "rbd": _ABSENT,
    # It depends on more than a storage daemon has.
    "replication": Driver(refusal="Driver 'replication' is not available in vhostblk"),
    "ssh": _ABSENT,
    "throttle": Driver(
        f"{_OPTIONS}.throttle:BlockdevOptionsThrottle", f"{_NODES}.throttle:ThrottleNode"
    ),
    "vdi": Driver(signatures=((64, b"\x7f\x10\xda\xbe"),)),
    "vhdx": Driver(signatures=((0, b"vhdxfile"),)),
    "virtio-blk-vfio-pci": _ABSENT,
    "virtio-blk-vhost-user": _ABSENT,
    "virtio-blk-vhost-vdpa": _ABSENT,
    "vmdk": Driver(
        signatures=((0, b"KDMV"), (0, b"COWD")),
        looks_like="vhostblk.block.formats:is_vmdk_descriptor",
    ),
    "vpc": Driver(signatures=((0, b"conectix"),), tail=b"conectix"),
    "vvfat": _ABSENT,
}

#: Makes the node class of a plug-in's driver.
PLUGIN_NODE = "vhostblk.plugin.node:node_class"

#: The drivers of a file name without a protocol prefix: of files, and of devices.
DEFAULT_PROTOCOL = "file"
DEVICE_PROTOCOL = "host_device"
#: The driver of a file in no known format.
DEFAULT_FORMAT = "raw"
#: The format of new overlays where the user names none.
DEFAULT_OVERLAY = "qcow2"
