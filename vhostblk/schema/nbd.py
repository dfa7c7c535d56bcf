# SPDX-License-Identifier: Apache-2.0
"""The commands of the NBD server, which is not available yet (`qapi/block-export.json`)."""

from __future__ import annotations

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.common import Uint32  # noqa: TC001 (read at run time)
from vhostblk.schema.export import BlockExportRemoveMode
from vhostblk.schema.socket import SocketAddressLegacy  # noqa: TC001 (read at run time)


class NbdServerOptions(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `nbd-server-start`."""

    handshake_max_seconds: Uint32 = 10
    tls_creds: str | UnsetType = UNSET
    tls_authz: str | UnsetType = UNSET
    max_connections: Uint32 = 100
    addr: SocketAddressLegacy


class NbdServerAdd(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `nbd-server-add`."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    device: str
    writable: bool = False
    bitmap: str | UnsetType = UNSET


class NbdServerRemove(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `nbd-server-remove`."""

    name: str
    mode: BlockExportRemoveMode = BlockExportRemoveMode.SAFE
