# SPDX-License-Identifier: Apache-2.0
"""The language of `--chardev`, and its messages, which are those of QEMU's daemon 10.0."""

from __future__ import annotations

import asyncio

import pytest

from tests.chardev.support import devices
from vhostblk.chardev.options import chardev_options
from vhostblk.errors import VhostblkError
from vhostblk.schema.base import UNSET
from vhostblk.schema.chardev import ChardevRingbuf, ChardevSocket
from vhostblk.schema.errors import HelpRequestedError
from vhostblk.schema.socket import UnixSocketAddressMembers

LONG = "x" * 200

REFUSED = [
    ("socket", "chardev: no id specified"),
    ("id=m", 'chardev: "m" missing backend'),
    ("bogus,id=m", "'bogus' is not a valid char driver name"),
    ("vc,id=m", "'vc' is not a valid char driver name"),
    ("socket,id=m", "Unable to parse FD number "),
    ("socket,id=m,path=x,host=h", "None or one of 'path', 'fd' or 'host' option required."),
    ("socket,id=m,host=h", "chardev: socket: no port given"),
    ("socket,id=1m,path=x", "Parameter 'id' expects an identifier"),
    ("socket,id=m,path=x,bogus=1", "Invalid parameter 'bogus'"),
    ("socket,id=m,path=x,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
    ("socket,id=m,path=x,reconnect-ms=x", "Parameter 'reconnect-ms' expects a number"),
    (
        "socket,id=m,path=/no/x,server=on,wait=off",
        "Failed to bind socket to /no/x: No such file or directory",
    ),
    (
        "socket,id=m,path=x,server=on,reconnect=1",
        "'reconnect' option is incompatible with socket in server listen mode",
    ),
    (
        "socket,id=m,path=x,wait=off",
        "'wait' option is incompatible with socket in client connect mode",
    ),
    (
        "socket,id=m,path=x,reconnect=1,reconnect-ms=1",
        "'reconnect' and 'reconnect-ms' are mutually exclusive",
    ),
    ("socket,id=m,path=x,delay=on,nodelay=on", "'delay' and 'nodelay' are mutually exclusive"),
    ("socket,id=m,path=x,websocket=on", "Websocket client is not implemented"),
    ("socket,id=m,path=x,tls-authz=a", "'tls_authz' option requires 'tls_creds' option"),
    (
        "socket,id=m,path=x,server=on,telnet=on",
        "Option 'telnet' of sockets is not available in vhostblk",
    ),
    ("socket,id=m,fd=999", "File descriptor '999' is not a socket"),
    ("socket,id=m,fd=x", "Unable to parse FD number x"),
    (
        "socket,id=m,fd=3,reconnect=1",
        "'reconnect' option is incompatible with 'fd' address type",
    ),
    ("socket,id=m,host=127.0.0.1,port=1", "Failed to connect to '127.0.0.1:1': Connection refused"),
    (
        "socket,id=m,host=127.0.0.1,port=x",
        "address resolution failed for 127.0.0.1:x: Servname not supported for ai_socktype",
    ),
    (
        f"socket,id=m,path={LONG}",
        f"UNIX socket path '{LONG}' is too long: must be less than 108 bytes",
    ),
    ("file,id=m", "chardev: file: no filename given"),
    ("file,id=m,path=/no/x", "Could not open '/no/x': No such file or directory"),
    ("pipe,id=m", "chardev: pipe: no device path given"),
    ("pipe,id=m,path=/no/p", "Could not open '/no/p': No such file or directory"),
    ("serial,id=m", "chardev: serial/tty: no device path given"),
    ("parallel,id=m", "chardev: parallel: no device path given"),
    ("parallel,id=m,path=/dev/null", "Backend 'parallel' is not available in vhostblk"),
    ("ringbuf,id=m,size=3", "size of ringbuf chardev must be power of two"),
    ("ringbuf,id=m,size=0", "size of ringbuf chardev must be power of two"),
    ("udp,id=m", "chardev: udp: remote port not specified"),
    ("mux,id=m", "chardev: mux: no chardev given"),
    ("mux,id=m,chardev=x", "Backend 'mux' is not available in vhostblk"),
    ("hub,id=m", "hub: 'chardevs' list is not defined"),
    ("null,id=m,logfile=/no/x", "Could not create '/no/x': No such file or directory"),
    ("null,id=m,width=x", "Parameter 'width' expects a number"),
    ("null,id=m,=x", "Invalid parameter ''"),
    (",null,id=m", "Invalid parameter 'null'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refusals(text: str, message: str) -> None:
    async def main() -> None:
        async with devices() as made:
            with pytest.raises(VhostblkError) as caught:
                await made.make(text)
            assert str(caught.value) == message

    asyncio.run(main())


def test_a_server_waits_unless_told_otherwise() -> None:
    for text, wait in (("server=on", True), ("server", True), ("server=on,nowait", False)):
        options = chardev_options(f"socket,id=m,path=a,,b,{text}")
        assert isinstance(options.backend.data, ChardevSocket)
        assert options.backend.data.wait is wait
        assert options.backend.data.server is True
        assert options.backend.data.addr.data == UnixSocketAddressMembers(path="a,b")


def test_a_client_by_default() -> None:
    options = chardev_options("socket,id=m,path=x")
    assert isinstance(options.backend.data, ChardevSocket)
    assert options.backend.data.server is False
    assert options.backend.data.wait is UNSET


def test_the_first_id_and_the_last_of_everything_else_count() -> None:
    options = chardev_options("ringbuf,id=a,size=4,id=b,size=8k")
    assert options.id == "a"
    assert isinstance(options.backend.data, ChardevRingbuf)
    assert options.backend.data.size == 8192


@pytest.mark.parametrize("text", ["help", "?", "socket,help", "socket,id=m,?"])
def test_help(text: str) -> None:
    with pytest.raises(HelpRequestedError):
        chardev_options(text)


def test_qmp_form() -> None:
    backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "x"}}}}
    options = chardev_options({"id": "m", "backend": backend})
    assert isinstance(options.backend.data, ChardevSocket)
    assert options.backend.data.server is UNSET
    with pytest.raises(VhostblkError, match=r"Parameter 'backend\.data\.addr' is missing"):
        chardev_options({"id": "m", "backend": {"type": "socket", "data": {}}})
