# SPDX-License-Identifier: Apache-2.0
"""What GnuTLS calls: for bytes of the connection, and for keys of clients."""

from __future__ import annotations

import errno
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vhostblk.crypto import gnutls

if TYPE_CHECKING:
    from vhostblk.net.tls.credentials import Credentials


@dataclass(slots=True)
class Transport:
    """The connection as a session sees it: what has come, and what is to be sent."""

    credentials: Credentials
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)


class Callbacks:
    """The functions, as C has them. Exceptions in one make GnuTLS fail."""

    def __init__(self) -> None:
        library = gnutls.library()
        self._ffi, self._lib = library.ffi, library.lib
        self.pull = self._ffi.callback("pull_function", self._pull, error=-1)
        self.push = self._ffi.callback("push_function", self._push, error=-1)
        self.find_key = self._ffi.callback("psk_function", self._find_key, error=-1)

    def _pull(self, pointer: Any, buffer: Any, size: int) -> int:
        transport: Transport = self._ffi.from_handle(pointer)
        incoming = transport.incoming
        if not incoming:
            self._ffi.errno = errno.EAGAIN
            return -1
        count = min(size, len(incoming))
        self._ffi.memmove(buffer, incoming, count)
        del incoming[:count]
        return count

    def _push(self, pointer: Any, buffer: Any, size: int) -> int:
        transport: Transport = self._ffi.from_handle(pointer)
        transport.outgoing += self._ffi.buffer(buffer, size)
        return size

    def _find_key(self, session: Any, name: Any, key: Any) -> int:
        """Return 0; 1 where nobody has the name: the library goes on with a made-up key."""
        transport: Transport = self._ffi.from_handle(self._lib.gnutls_session_get_ptr(session))
        found = transport.credentials.find_key(self._ffi.string(name))
        if found is None:
            return 1
        with found, found.view as view:
            key.data = self._ffi.cast("unsigned char *", self._lib.gnutls_malloc(len(view)))
            if key.data == self._ffi.NULL:
                return -1
            self._ffi.memmove(key.data, view, len(view))
            key.size = len(view)
        return 0


@functools.cache
def callbacks() -> Callbacks:
    """Return the functions; raises LibraryError."""
    return Callbacks()
