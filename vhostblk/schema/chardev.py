# SPDX-License-Identifier: Apache-2.0
"""Character devices: `ChardevBackend`, its branches, and the commands (`qapi/char.json`)."""

from __future__ import annotations

from enum import Enum

from msgspec import field

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.socket import SocketAddressLegacy  # noqa: TC001 (read at run time)


class ChardevCommon(QapiStruct, kw_only=True, frozen=True):
    """Members common to all character devices."""

    #: Keep a copy of everything written.
    logfile: str | UnsetType = UNSET
    logappend: bool = False


class ChardevFile(ChardevCommon, kw_only=True, frozen=True):
    """A file written to, and one read from."""

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
    #: Start only once a client has connected.
    wait: bool | UnsetType = UNSET
    nodelay: bool = False
    telnet: bool = False
    tn3270: bool = False
    websocket: bool = False
    #: Seconds, or milliseconds, until a client tries again; 0: never.
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
    """Standard input and output; `signal`: control characters of the terminal make signals."""

    signal: bool = True


class ChardevRingbuf(ChardevCommon, kw_only=True, frozen=True):
    """The last `size` bytes written; a power of two."""

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


class ChardevFileWrapper(QapiStruct, tag_field="type", tag="file", kw_only=True, frozen=True):
    """`file`."""

    data: ChardevFile


class ChardevSerialWrapper(QapiStruct, tag_field="type", tag="serial", kw_only=True, frozen=True):
    """`serial`."""

    data: ChardevHostdev


class ChardevParallelWrapper(
    QapiStruct, tag_field="type", tag="parallel", kw_only=True, frozen=True
):
    """`parallel`."""

    data: ChardevHostdev


class ChardevPipeWrapper(QapiStruct, tag_field="type", tag="pipe", kw_only=True, frozen=True):
    """`pipe`."""

    data: ChardevHostdev


class ChardevSocketWrapper(QapiStruct, tag_field="type", tag="socket", kw_only=True, frozen=True):
    """`socket`."""

    data: ChardevSocket


class ChardevUdpWrapper(QapiStruct, tag_field="type", tag="udp", kw_only=True, frozen=True):
    """`udp`."""

    data: ChardevUdp


class ChardevPtyWrapper(QapiStruct, tag_field="type", tag="pty", kw_only=True, frozen=True):
    """`pty`."""

    data: ChardevPty


class ChardevNullWrapper(QapiStruct, tag_field="type", tag="null", kw_only=True, frozen=True):
    """`null`."""

    data: ChardevCommon


class ChardevMuxWrapper(QapiStruct, tag_field="type", tag="mux", kw_only=True, frozen=True):
    """`mux`."""

    data: ChardevMux


class ChardevHubWrapper(QapiStruct, tag_field="type", tag="hub", kw_only=True, frozen=True):
    """`hub`."""

    data: ChardevHub


class ChardevStdioWrapper(QapiStruct, tag_field="type", tag="stdio", kw_only=True, frozen=True):
    """`stdio`."""

    data: ChardevStdio


class ChardevRingbufWrapper(QapiStruct, tag_field="type", tag="ringbuf", kw_only=True, frozen=True):
    """`ringbuf`."""

    data: ChardevRingbuf


class ChardevMemoryWrapper(QapiStruct, tag_field="type", tag="memory", kw_only=True, frozen=True):
    """`memory`, the former name of `ringbuf`."""

    data: ChardevRingbuf


class ChardevMsmouseWrapper(QapiStruct, tag_field="type", tag="msmouse", kw_only=True, frozen=True):
    """`msmouse`, which needs a virtual machine."""

    data: ChardevCommon


class ChardevWctabletWrapper(
    QapiStruct, tag_field="type", tag="wctablet", kw_only=True, frozen=True
):
    """`wctablet`, which needs a virtual machine."""

    data: ChardevCommon


class ChardevBrailleWrapper(QapiStruct, tag_field="type", tag="braille", kw_only=True, frozen=True):
    """`braille`, which needs a virtual machine."""

    data: ChardevCommon


class ChardevTestdevWrapper(QapiStruct, tag_field="type", tag="testdev", kw_only=True, frozen=True):
    """`testdev`, which needs a virtual machine."""

    data: ChardevCommon


class ChardevSpiceChannelWrapper(
    QapiStruct, tag_field="type", tag="spicevmc", kw_only=True, frozen=True
):
    """`spicevmc`, which needs a virtual machine."""

    data: ChardevSpiceChannel


class ChardevSpicePortWrapper(
    QapiStruct, tag_field="type", tag="spiceport", kw_only=True, frozen=True
):
    """`spiceport`, which needs a virtual machine."""

    data: ChardevSpicePort


class ChardevQemuVDAgentWrapper(
    QapiStruct, tag_field="type", tag="qemu-vdagent", kw_only=True, frozen=True
):
    """`qemu-vdagent`, which needs a virtual machine."""

    data: ChardevQemuVDAgent


class ChardevDBusWrapper(QapiStruct, tag_field="type", tag="dbus", kw_only=True, frozen=True):
    """`dbus`, which needs a virtual machine."""

    data: ChardevDBus


class ChardevVCWrapper(QapiStruct, tag_field="type", tag="vc", kw_only=True, frozen=True):
    """`vc`, which needs a virtual machine."""

    data: ChardevVC


ChardevBackend = (
    ChardevFileWrapper
    | ChardevSerialWrapper
    | ChardevParallelWrapper
    | ChardevPipeWrapper
    | ChardevSocketWrapper
    | ChardevUdpWrapper
    | ChardevPtyWrapper
    | ChardevNullWrapper
    | ChardevMuxWrapper
    | ChardevHubWrapper
    | ChardevMsmouseWrapper
    | ChardevWctabletWrapper
    | ChardevBrailleWrapper
    | ChardevTestdevWrapper
    | ChardevStdioWrapper
    | ChardevSpiceChannelWrapper
    | ChardevSpicePortWrapper
    | ChardevQemuVDAgentWrapper
    | ChardevDBusWrapper
    | ChardevVCWrapper
    | ChardevRingbufWrapper
    | ChardevMemoryWrapper
)


class DataFormat(Enum):
    """How bytes are written as a string."""

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
