# SPDX-License-Identifier: Apache-2.0
"""Credentials that are keys which both sides know.

A server's file is looked at before each handshake, so that names can be added and removed while it
runs. The library is not given the file: its buffers would keep keys in memory that is not zeroed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vhostblk.crypto import files, gnutls
from vhostblk.crypto.secret_bytes import SecretBytes
from vhostblk.net.tls.callbacks import callbacks
from vhostblk.net.tls.credentials import Credentials, Source, allocate, set_dh_parameters
from vhostblk.net.tls.errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "keys.psk"
DEFAULT_USERNAME = "qemu"

_HEX = {character: int(chr(character), 16) for character in b"0123456789abcdefABCDEF"}
_LINE_FEED, _COLON = ord("\n"), ord(":")


class PskCredentials(Credentials):
    """Names and keys of a file, or of a client the one that is its own."""

    kind = gnutls.CRD_PSK
    additional_priority = ":+ECDHE-PSK:+DHE-PSK:+PSK"

    def __init__(
        self,
        source: Source,
        *,
        priority: str | None,
        verify_peer: bool,
        username: str | None,
    ) -> None:
        super().__init__(source, priority=priority, verify_peer=verify_peer)
        self.refreshes = source.server
        self._content: SecretBytes | None = None
        self._state: tuple[int, ...] | None = None
        if source.server:
            if username is not None:
                raise CredentialsError("username should not be set when endpoint=server")
            self._begin_server()
        else:
            self._begin_client(DEFAULT_USERNAME if username is None else username)

    def _begin_server(self) -> None:
        lib = gnutls.library().lib
        source = self.source
        self.handle = allocate("psk", "server")
        path = source.find(FILE, required=True)
        assert path is not None
        self._path = str(Path(path).absolute())  # a daemon changes its directory
        set_dh_parameters(
            self,
            lambda parameters: lib.gnutls_psk_set_server_dh_params(self.handle, parameters),
            lambda: lib.gnutls_psk_set_server_known_dh_params(self.handle, gnutls.SEC_PARAM_MEDIUM),
        )
        lib.gnutls_psk_set_server_credentials_function(self.handle, callbacks().find_key)
        self.refresh()

    def _begin_client(self, username: str) -> None:
        library = gnutls.library()
        path = self.source.find(FILE, required=True)
        assert path is not None
        name = username.encode("utf-8", "surrogateescape")
        with _read(path) as content, content.view as view:
            key = next((key for found, key in _lines(view) if bytes(found) == name), None)
            if key is None:
                raise CredentialsError(f"Username {username} not found in PSK file {path}")
            self.handle = allocate("psk", "client")
            datum = library.datum(key if len(key) else b"\0")
            datum.size = len(key)
            code = library.lib.gnutls_psk_set_client_credentials(
                self.handle, name, datum, gnutls.PSK_KEY_HEX
            )
        if code < 0:
            raise CredentialsError(
                f"Cannot set PSK client credentials: {library.description(code)}"
            )

    def refresh(self) -> None:
        """Read the file again if it is another one now; raises CredentialsError."""
        if not self.source.server:
            return
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise CredentialsError(
                f"Cannot read PSK file {self._path}: {files.read_failure(self._path, error)}"
            ) from error
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if state != self._state:
            self._content = _read(self._path)  # sessions may still look at the former one
            self._state = state

    def find_key(self, name: bytes) -> SecretBytes | None:
        """Return a key; None: nobody has that name, or the key is none."""
        content = self._content  # a refresh on a thread may replace it meanwhile
        assert content is not None
        with content.view as view:
            found = find_key(view, name)
            return None if found is None else decode_hex(found)


def find_key(content: memoryview, name: bytes) -> memoryview | None:
    """Return the digits of a name's key; names may be written as `#` and hexadecimal digits."""
    encoded = b"#" + name.hex().encode()
    for found, key in _lines(content):
        if bytes(found) in (name, encoded):
            return _stripped(key)
    return None


def decode_hex(text: memoryview) -> SecretBytes | None:
    """Decode a key; None: it is none."""
    if not len(text) or len(text) % 2 or any(character not in _HEX for character in text):
        return None
    decoded = SecretBytes(length=len(text) // 2)
    with decoded.view as view:
        for index in range(len(view)):
            view[index] = _HEX[text[2 * index]] << 4 | _HEX[text[2 * index + 1]]
    return decoded


def _stripped(text: memoryview) -> memoryview:
    """Return a line without what editors of other systems leave at its end."""
    end = len(text)
    while end and text[end - 1] in b" \r":
        end -= 1
    return text[:end]


def _lines(content: memoryview) -> Iterator[tuple[memoryview, memoryview]]:
    """Yield names and keys; lines that have no colon are skipped."""
    start = 0
    length = len(content)
    while start < length:
        end = _find(content, _LINE_FEED, start, length)
        colon = _find(content, _COLON, start, end)
        if colon < end:
            yield content[start:colon], content[colon + 1 : end]
        start = end + 1


def _find(content: memoryview, byte: int, start: int, end: int) -> int:
    for index in range(start, end):
        if content[index] == byte:
            return index
    return end


def _read(path: str) -> SecretBytes:
    try:
        return files.read_secret(path)
    except OSError as error:
        raise CredentialsError(
            f"Cannot read PSK file {path}: {files.read_failure(path, error)}"
        ) from error
