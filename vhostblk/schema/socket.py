# SPDX-License-Identifier: Apache-2.0
"""Socket addresses: `SocketAddress` and its branches (`qapi/sockets.json`)."""

from __future__ import annotations

import msgspec

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.common import Uint16  # noqa: TC001 (read at run time)


class InetSocketAddressMembers(QapiStruct, kw_only=True, frozen=True):
    """TCP over IPv4 or IPv6."""

    host: str
    port: str
    numeric: bool = False
    to: Uint16 | UnsetType = UNSET
    ipv4: bool | UnsetType = UNSET
    ipv6: bool | UnsetType = UNSET
    keep_alive: bool = False
    mptcp: bool = False


class UnixSocketAddressMembers(QapiStruct, kw_only=True, frozen=True):
    """A socket in the file system, or with `abstract` in Linux's abstract name space."""

    path: str
    abstract: bool = False
    tight: bool = True


class VsockSocketAddressMembers(QapiStruct, kw_only=True, frozen=True):
    """A socket between host and guests."""

    cid: str
    port: str


class FdSocketAddressMembers(QapiStruct, kw_only=True, frozen=True):
    """A socket that the daemon inherited, as a decimal number."""

    fd: str = msgspec.field(name="str")


class InetSocketAddress(
    InetSocketAddressMembers, tag_field="type", tag="inet", kw_only=True, frozen=True
):
    """The branch `inet` of `SocketAddress`."""


class UnixSocketAddress(
    UnixSocketAddressMembers, tag_field="type", tag="unix", kw_only=True, frozen=True
):
    """The branch `unix` of `SocketAddress`."""


class VsockSocketAddress(
    VsockSocketAddressMembers, tag_field="type", tag="vsock", kw_only=True, frozen=True
):
    """The branch `vsock` of `SocketAddress`."""


class FdSocketAddress(
    FdSocketAddressMembers, tag_field="type", tag="fd", kw_only=True, frozen=True
):
    """The branch `fd` of `SocketAddress`."""


SocketAddress = InetSocketAddress | UnixSocketAddress | VsockSocketAddress | FdSocketAddress


class InetSocketAddressWrapper(QapiStruct, tag_field="type", tag="inet", kw_only=True, frozen=True):
    """`InetSocketAddress` as it is nested in `SocketAddressLegacy`."""

    data: InetSocketAddressMembers


class UnixSocketAddressWrapper(QapiStruct, tag_field="type", tag="unix", kw_only=True, frozen=True):
    """`UnixSocketAddress` as it is nested in `SocketAddressLegacy`."""

    data: UnixSocketAddressMembers


class VsockSocketAddressWrapper(
    QapiStruct, tag_field="type", tag="vsock", kw_only=True, frozen=True
):
    """`VsockSocketAddress` as it is nested in `SocketAddressLegacy`."""

    data: VsockSocketAddressMembers


class FdSocketAddressWrapper(QapiStruct, tag_field="type", tag="fd", kw_only=True, frozen=True):
    """`FdSocketAddress` as it is nested in `SocketAddressLegacy`."""

    data: FdSocketAddressMembers


#: The older form of an address, which character devices still use.
SocketAddressLegacy = (
    InetSocketAddressWrapper
    | UnixSocketAddressWrapper
    | VsockSocketAddressWrapper
    | FdSocketAddressWrapper
)
