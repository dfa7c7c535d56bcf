# SPDX-License-Identifier: Apache-2.0
"""Conversion of the options of `--chardev`, which have their own syntax, to a `ChardevAdd`.

All backends share one flat set of names (`qemu_chardev_opts`). A backend ignores the options that
it does not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vhostblk.chardev.base import ChardevError
from vhostblk.schema import chardev as schema
from vhostblk.schema.base import UNSET, QapiStruct
from vhostblk.schema.convert import from_json
from vhostblk.schema.qemu_opts import BOOLEAN, NUMBER, SIZE, STRING, QemuOpts, parse
from vhostblk.schema.socket import (
    FdSocketAddressMembers,
    FdSocketAddressWrapper,
    InetSocketAddressMembers,
    InetSocketAddressWrapper,
    UnixSocketAddressMembers,
    UnixSocketAddressWrapper,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.schema.options import Options
    from vhostblk.schema.socket import SocketAddressLegacy

#: The options of all QEMU backends.
KINDS = {
    "abstract": BOOLEAN,
    "append": BOOLEAN,
    "backend": STRING,
    "chardev": STRING,
    **{f"chardevs.{index}": STRING for index in range(4)},
    "clipboard": BOOLEAN,
    "cols": NUMBER,
    "debug": NUMBER,
    "delay": BOOLEAN,
    "fd": STRING,
    "height": NUMBER,
    "host": STRING,
    "input-path": STRING,
    "ipv4": BOOLEAN,
    "ipv6": BOOLEAN,
    "localaddr": STRING,
    "localport": STRING,
    "logappend": BOOLEAN,
    "logfile": STRING,
    "mouse": BOOLEAN,
    "mux": BOOLEAN,
    "name": STRING,
    "nodelay": BOOLEAN,
    "path": STRING,
    "port": STRING,
    "reconnect": NUMBER,
    "reconnect-ms": NUMBER,
    "rows": NUMBER,
    "server": BOOLEAN,
    "signal": BOOLEAN,
    "size": SIZE,
    "telnet": BOOLEAN,
    "tight": BOOLEAN,
    "tls-authz": STRING,
    "tls-creds": STRING,
    "tn3270": BOOLEAN,
    "to": NUMBER,
    "wait": BOOLEAN,
    "websocket": BOOLEAN,
    "width": NUMBER,
}


def chardev_options(options: Options) -> schema.ChardevAdd:
    """Return the definition of a character device; raises OptionError or ChardevError."""
    if isinstance(options, QapiStruct):
        return cast("schema.ChardevAdd", options)
    if not isinstance(options, str):
        return cast("schema.ChardevAdd", from_json(schema.ChardevAdd, options))
    opts = parse(options, "backend", KINDS)
    name = opts.string("backend")
    if opts.id is None:
        raise ChardevError("chardev: no id specified")
    if name is None:
        raise ChardevError(f'chardev: "{opts.id}" missing backend')
    backend = _BACKENDS.get(name)
    if backend is None:
        raise ChardevError(f"'{name}' is not a valid char driver name")
    if opts.boolean("mux", False):
        raise ChardevError("Option 'mux' is not available in vhostblk")
    return schema.ChardevAdd(id=opts.id, backend=backend(opts))


def _common(opts: QemuOpts) -> dict[str, Any]:
    logfile = opts.string("logfile")
    return {
        "logfile": UNSET if logfile is None else logfile,
        "logappend": opts.boolean("logappend", False),
    }


def _device(opts: QemuOpts, what: str) -> schema.ChardevHostdev:
    path = opts.string("path")
    if path is None:
        raise ChardevError(f"chardev: {what}: no device path given")
    return schema.ChardevHostdev(device=path, **_common(opts))


def _file(opts: QemuOpts) -> schema.ChardevBackend:
    path, source = opts.string("path"), opts.string("input-path")
    if path is None:
        raise ChardevError("chardev: file: no filename given")
    return schema.chardev_backend(
        "file",
        schema.ChardevFile(
            out=path,
            input=UNSET if source is None else source,
            append=opts.boolean("append", False),
            **_common(opts),
        ),
    )


def _socket(opts: QemuOpts) -> schema.ChardevBackend:
    given = [name for name in ("path", "fd", "host") if name in opts]
    if len(given) > 1:
        raise ChardevError("None or one of 'path', 'fd' or 'host' option required.")
    if "host" in opts and "port" not in opts:
        raise ChardevError("chardev: socket: no port given")
    if "delay" in opts and "nodelay" in opts:
        raise ChardevError("'delay' and 'nodelay' are mutually exclusive")
    server = opts.boolean("server", False)
    reconnect, reconnect_ms = opts.number("reconnect"), opts.number("reconnect-ms")
    credentials, authorization = opts.string("tls-creds"), opts.string("tls-authz")
    return schema.chardev_backend(
        "socket",
        schema.ChardevSocket(
            addr=_socket_address(opts),
            server=server,
            wait=opts.boolean("wait", True) if server or "wait" in opts else UNSET,
            nodelay=not opts.boolean("delay", True) or opts.boolean("nodelay", False),
            telnet=opts.boolean("telnet", False),
            tn3270=opts.boolean("tn3270", False),
            websocket=opts.boolean("websocket", False),
            reconnect=UNSET if reconnect is None else reconnect,
            reconnect_ms=UNSET if reconnect_ms is None else reconnect_ms,
            tls_creds=UNSET if credentials is None else credentials,
            tls_authz=UNSET if authorization is None else authorization,
            **_common(opts),
        ),
    )


def _socket_address(opts: QemuOpts) -> SocketAddressLegacy:
    path, host = opts.string("path"), opts.string("host")
    if path is not None:
        return UnixSocketAddressWrapper(
            data=UnixSocketAddressMembers(
                path=path,
                abstract=opts.boolean("abstract", False),
                tight=opts.boolean("tight", True),
            )
        )
    if host is not None:
        to = opts.number("to")
        if to is not None and to > 0xFFFF:
            raise ChardevError("Parameter 'to' expects a port number")
        return InetSocketAddressWrapper(
            data=InetSocketAddressMembers(
                host=host,
                port=opts.string("port") or "",
                to=UNSET if to is None else to,
                ipv4=opts.boolean("ipv4", False) if "ipv4" in opts else UNSET,
                ipv6=opts.boolean("ipv6", False) if "ipv6" in opts else UNSET,
            )
        )
    return FdSocketAddressWrapper(data=FdSocketAddressMembers(fd=opts.string("fd") or ""))


def _udp(opts: QemuOpts) -> schema.ChardevBackend:
    port = opts.string("port")
    if not port:
        raise ChardevError("chardev: udp: remote port not specified")
    families: dict[str, Any] = {
        "ipv4": opts.boolean("ipv4", False) if "ipv4" in opts else UNSET,
        "ipv6": opts.boolean("ipv6", False) if "ipv6" in opts else UNSET,
    }
    local = UNSET
    if opts.string("localaddr") or opts.string("localport"):
        local = InetSocketAddressWrapper(  # type: ignore[assignment]
            data=InetSocketAddressMembers(
                host=opts.string("localaddr") or "", port=opts.string("localport") or "0"
            )
        )
    remote = InetSocketAddressMembers(
        host=opts.string("host") or "localhost", port=port, **families
    )
    return schema.chardev_backend(
        "udp",
        schema.ChardevUdp(
            remote=InetSocketAddressWrapper(data=remote), local=local, **_common(opts)
        ),
    )


def _pty(opts: QemuOpts) -> schema.ChardevBackend:
    path = opts.string("path")
    return schema.chardev_backend(
        "pty", schema.ChardevPty(path=UNSET if path is None else path, **_common(opts))
    )


def _ringbuf(opts: QemuOpts) -> schema.ChardevRingbuf:
    # A huge one is refused by its own check, as it is no power of two of 63 bits.
    size = opts.number("size")
    return schema.ChardevRingbuf(size=65536 if size is None else size, **_common(opts))


def _mux(opts: QemuOpts) -> schema.ChardevBackend:
    base = opts.string("chardev")
    if base is None:
        raise ChardevError("chardev: mux: no chardev given")
    return schema.chardev_backend("mux", schema.ChardevMux(chardev=base))


def _hub(opts: QemuOpts) -> schema.ChardevBackend:
    names = [opts.string(f"chardevs.{index}") for index in range(4)]
    chosen = [name for name in names if name is not None]
    if not chosen:
        raise ChardevError("hub: 'chardevs' list is not defined")
    return schema.chardev_backend("hub", schema.ChardevHub(chardevs=chosen))


_BACKENDS: dict[str, Callable[[QemuOpts], schema.ChardevBackend]] = {
    "file": _file,
    "hub": _hub,
    "memory": lambda opts: schema.chardev_backend("memory", _ringbuf(opts)),
    "mux": _mux,
    "null": lambda opts: schema.chardev_backend("null", schema.ChardevCommon(**_common(opts))),
    "parallel": lambda opts: schema.chardev_backend("parallel", _device(opts, "parallel")),
    "pipe": lambda opts: schema.chardev_backend("pipe", _device(opts, "pipe")),
    "pty": _pty,
    "ringbuf": lambda opts: schema.chardev_backend("ringbuf", _ringbuf(opts)),
    "serial": lambda opts: schema.chardev_backend("serial", _device(opts, "serial/tty")),
    "socket": _socket,
    "stdio": lambda opts: schema.chardev_backend(
        "stdio", schema.ChardevStdio(signal=opts.boolean("signal", True), **_common(opts))
    ),
    "udp": _udp,
}
