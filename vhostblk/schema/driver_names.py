# SPDX-License-Identifier: Apache-2.0
"""Names of QEMU's drivers, whether or not there is such a driver here.

They are for what names a format without opening it; drivers of plug-ins are not among them.
"""

from __future__ import annotations

from enum import Enum


class BlockdevDriver(Enum):
    """`BlockdevDriver`."""

    BLKDEBUG = "blkdebug"
    BLKLOGWRITES = "blklogwrites"
    BLKREPLAY = "blkreplay"
    BLKVERIFY = "blkverify"
    BOCHS = "bochs"
    CLOOP = "cloop"
    COMPRESS = "compress"
    COPY_BEFORE_WRITE = "copy-before-write"
    COPY_ON_READ = "copy-on-read"
    DMG = "dmg"
    FILE = "file"
    SNAPSHOT_ACCESS = "snapshot-access"
    FTP = "ftp"
    FTPS = "ftps"
    GLUSTER = "gluster"
    HOST_CDROM = "host_cdrom"
    HOST_DEVICE = "host_device"
    HTTP = "http"
    HTTPS = "https"
    IO_URING = "io_uring"
    ISCSI = "iscsi"
    LUKS = "luks"
    NBD = "nbd"
    NFS = "nfs"
    NULL_AIO = "null-aio"
    NULL_CO = "null-co"
    NVME = "nvme"
    NVME_IO_URING = "nvme-io_uring"
    PARALLELS = "parallels"
    PREALLOCATE = "preallocate"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    QED = "qed"
    QUORUM = "quorum"
    RAW = "raw"
    RBD = "rbd"
    REPLICATION = "replication"
    SSH = "ssh"
    THROTTLE = "throttle"
    VDI = "vdi"
    VHDX = "vhdx"
    VIRTIO_BLK_VFIO_PCI = "virtio-blk-vfio-pci"
    VIRTIO_BLK_VHOST_USER = "virtio-blk-vhost-user"
    VIRTIO_BLK_VHOST_VDPA = "virtio-blk-vhost-vdpa"
    VMDK = "vmdk"
    VPC = "vpc"
    VVFAT = "vvfat"
