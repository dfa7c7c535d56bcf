# SPDX-License-Identifier: Apache-2.0
"""Character devices: `ChardevBackend`, its branches, and the commands (`qapi/char.json`)."""

from __future__ import annotations

import functools
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import field

from vhostblk.schema.base import UNSET, OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.socket import SocketAddressLegacy  # noqa: TC001 (read at run time)


class ChardevCommon(QapiStruct, kw_only=True, frozen=True):
    """Members common to all character devices."""

    #: Write a copy of all output to this file.
    logfile: str | UnsetType = UNSET
    logappend: bool = False


class ChardevFile(ChardevCommon, kw_only=True, frozen=True):
    """A file for output, and one for input."""

    input: str | UnsetType = field(name="in", default=UNSET)
    out: str
    append: bool = False


class ChardevHostdev(ChardevCommon, kw_only=True, frozen=True):
    """A device of the host, or named pipes."""

    device: str


class ChardevSocket(ChardevCommon, kw_only=True, frozen=True):
    """A stream socket."""

    addr: SocketAddressLegacy
    tls_creds: str | UnsetType = UNSET
    tls_authz: str | UnsetType = UNSET
    server: bool | UnsetType = UNSET
    #: Wait for the first client at the start.
    wait: bool | UnsetType = UNSET
    nodelay: bool = False
    telnet: bool = False
    tn3270: bool = False
    websocket: bool = False
    #: Seconds, or milliseconds, until a client connects again; 0: never.
    reconnect: int | UnsetType = UNSET
    reconnect_ms: int | UnsetType = UNSET


class ChardevUdp(ChardevCommon, kw_only=True, frozen=True):
    """Datagrams."""

    remote: SocketAddressLegacy
    local: SocketAddressLegacy | UnsetType = UNSET


class ChardevPty(ChardevCommon, kw_only=True, frozen=True):
    """A pseudo-terminal; `path` is a symbolic link to it."""

    path: str | UnsetType = UNSET


class ChardevMux(ChardevCommon, kw_only=True, frozen=True):
    """Several front-ends on one device."""

    chardev: str


class ChardevHub(ChardevCommon, kw_only=True, frozen=True):
    """One front-end on several devices."""

    chardevs: list[str]


class ChardevStdio(ChardevCommon, kw_only=True, frozen=True):
    """Standard input and output; `signal`: control characters of the terminal send signals."""

    signal: bool = True


class ChardevRingbuf(ChardevCommon, kw_only=True, frozen=True):
    """A buffer of the last `size` bytes; a power of two."""

    size: int = 65536


class ChardevSpiceChannel(ChardevCommon, kw_only=True, frozen=True):
    """A channel of a SPICE display."""

    type: str


class ChardevSpicePort(ChardevCommon, kw_only=True, frozen=True):
    """A port of a SPICE display."""

    fqdn: str


class ChardevQemuVDAgent(ChardevCommon, kw_only=True, frozen=True):
    """An agent in the guest that shares mouse and clipboard."""

    mouse: bool | UnsetType = UNSET
    clipboard: bool | UnsetType = UNSET


class ChardevDBus(ChardevCommon, kw_only=True, frozen=True):
    """A channel of a D-Bus display."""

    name: str


class ChardevVC(ChardevCommon, kw_only=True, frozen=True):
    """A text console of a display."""

    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET
    cols: int | UnsetType = UNSET
    rows: int | UnsetType = UNSET


class ChardevBackend(OpenUnion, tag_field="type", kw_only=True, frozen=True):
    """A backend by its name; the member `data` has its options."""

    if TYPE_CHECKING:
        data: Any

    @classmethod
    def find_branch(cls, tag: str) -> type[ChardevBackend] | None:
        """Return the struct of a backend."""
        return _branch(tag) if tag in _OPTIONS else None

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all backends."""
        return list(_OPTIONS)


#: The options of each backend; `memory` is the former name of `ringbuf`.
_OPTIONS: dict[str, type[ChardevCommon]] = {
    "file": ChardevFile,
    "serial": ChardevHostdev,
    "parallel": ChardevHostdev,
    "pipe": ChardevHostdev,
    "socket": ChardevSocket,
    "udp": ChardevUdp,
    "pty": ChardevPty,
    "null": ChardevCommon,
    "mux": ChardevMux,
    "hub": ChardevHub,
    "msmouse": ChardevCommon,
    "wctablet": ChardevCommon,
    "braille": ChardevCommon,
    "testdev": ChardevCommon,
    "stdio": ChardevStdio,
    "spicevmc": ChardevSpiceChannel,
    "spiceport": ChardevSpicePort,
    "qemu-vdagent": ChardevQemuVDAgent,
    "dbus": ChardevDBus,
    "vc": ChardevVC,
    "ringbuf": ChardevRingbuf,
    "memory": ChardevRingbuf,
}


@functools.cache
def _branch(name: str) -> type[ChardevBackend]:
    made: Any = msgspec.defstruct(
        "ChardevBackendBranch",
        [("data", _OPTIONS[name])],
        bases=(ChardevBackend,),
        tag=name,
        kw_only=True,
        frozen=True,
    )
    branch: type[ChardevBackend] = made
    return branch


def chardev_backend(name: str, data: ChardevCommon) -> ChardevBackend:
    """Return a struct of a backend with these options."""
    return _branch(name)(data=data)


class DataFormat(Enum):
    """The encoding of bytes in a string."""

    UTF8 = "utf8"
    BASE64 = "base64"


class ChardevInfo(QapiStruct, kw_only=True, frozen=True):
    """One device in the answer of `query-chardev`."""

    label: str
    filename: str
    frontend_open: bool


class ChardevBackendInfo(QapiStruct, kw_only=True, frozen=True):
    """One kind of device in the answer of `query-chardev-backends`."""

    name: str


class ChardevReturn(QapiStruct, kw_only=True, frozen=True):
    """Answer of `chardev-add` and `chardev-change`."""

    pty: str | UnsetType = UNSET


class ChardevAdd(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `chardev-add` and `chardev-change`."""

    id: str
    backend: ChardevBackend


class ChardevId(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `chardev-remove` and `chardev-send-break`."""

    id: str


class RingbufWrite(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `ringbuf-write`."""

    device: str
    data: str
    format: DataFormat = DataFormat.UTF8


class RingbufRead(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `ringbuf-read`."""

    device: str
    size: int
    format: DataFormat = DataFormat.UTF8
