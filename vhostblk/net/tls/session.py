# SPDX-License-Identifier: Apache-2.0
"""One side of a TLS connection, without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.crypto import gnutls
from vhostblk.crypto.errors import SecretError
from vhostblk.net.codec import Codec
from vhostblk.net.tls.callbacks import Transport, callbacks
from vhostblk.net.tls.errors import TlsError
from vhostblk.net.tls.verify import verify_peer

if TYPE_CHECKING:
    from typing import Any

    from vhostblk.net.tls.credentials import Credentials

_BUFFER_SIZE = 16 << 10

#: Nothing before TLS 1.2, whatever the priority says.
_NO_OLD_VERSIONS = ":-VERS-TLS1.0:-VERS-TLS1.1"

#: Warnings and the like that a peer may send before something that matters.
_MAX_DISTRACTIONS = 16


class TlsSession(Codec):
    """A session with one peer.

    The caller asks `peer_name` once `established`, and decides whether to go on. The session keeps
    the credentials that it began with.
    """

    def __init__(self, credentials: Credentials, *, hostname: str | None = None) -> None:
        """Begin; a client checks that the server's certificate is for `hostname`.

        Raises TlsError.
        """
        self._library = library = gnutls.library()
        self._ffi, self._lib = ffi, lib = library.ffi, library.lib
        self._hostname = hostname
        self.credentials = credentials
        #: Set by a handshake with certificates that are verified.
        self.peer_name: str | None = None
        self._transport = Transport(credentials)
        self._pointer = ffi.new_handle(self._transport)
        self._buffer = ffi.new("char[]", _BUFFER_SIZE)
        self._failed = False
        flags = gnutls.SERVER if credentials.server else gnutls.CLIENT
        try:
            self._session: Any = library.new(
                "gnutls_session_t", lambda made: lib.gnutls_init(made, flags), lib.gnutls_deinit
            )
        except SecretError as error:
            raise TlsError(f"Cannot initialize TLS session: {error}") from error
        self._set_up()

    def _set_up(self) -> None:
        credentials, session, lib = self.credentials, self._session, self._lib
        priority = credentials.priority
        code = lib.gnutls_priority_set_direct(
            session,
            f"{priority}{_NO_OLD_VERSIONS}".encode("utf-8", "surrogateescape"),
            self._ffi.NULL,
        )
        if code < 0:
            raise TlsError(
                f"{credentials.priority_failure} {priority}: {self._library.description(code)}"
            )
        code = lib.gnutls_credentials_set(session, credentials.kind, credentials.handle)
        if code < 0:
            raise TlsError(f"Cannot set session credentials: {self._library.description(code)}")
        if credentials.server and credentials.kind == gnutls.CRD_CERTIFICATE:
            # A client that has none is refused by the verification, which may be turned off.
            lib.gnutls_certificate_server_set_request(session, gnutls.CERT_REQUEST)
        lib.gnutls_session_set_ptr(session, self._pointer)
        lib.gnutls_transport_set_ptr(session, self._pointer)
        lib.gnutls_transport_set_push_function(session, callbacks().push)
        lib.gnutls_transport_set_pull_function(session, callbacks().pull)

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the peer; return what it has sent."""
        self._transport.incoming += data
        if self.established:
            return self._receive()
        self._shake_hands()
        return b""

    def encode(self, data: bytes) -> bytes:
        """Encrypt data; after a failure, or good-bye, it is dropped."""
        sent = distractions = 0
        while sent < len(data) and not self._failed:
            part = self._ffi.from_buffer(data) + sent
            count = self._lib.gnutls_record_send(self._session, part, len(data) - sent)
            if count > 0:
                sent += count
                continue
            distractions += 1
            if self._lib.gnutls_error_is_fatal(count) or distractions > _MAX_DISTRACTIONS:
                self._failed = True
                raise TlsError(f"Cannot write to TLS channel: {self._library.description(count)}")
        return self._take()

    def _take(self) -> bytes:
        outgoing = bytes(self._transport.outgoing)
        self._transport.outgoing.clear()
        return outgoing

    def refuse(self, alert: int) -> None:
        """Tell the peer why the connection is about to end."""
        self._failed = True
        self._lib.gnutls_alert_send(self._session, gnutls.ALERT_FATAL, alert)

    def finish(self) -> bytes:
        """Say good-bye."""
        if self.established and not self._failed:
            self._lib.gnutls_bye(self._session, gnutls.SHUT_WR)
            self._failed = True
        return self._take()

    def close(self) -> None:
        """Free the session and forget what it has received."""
        if self._session is not None:
            self._ffi.release(self._session)
            self._session = None
            self._ffi.buffer(self._buffer)[:] = bytes(_BUFFER_SIZE)

    def _shake_hands(self) -> None:
        distractions = 0
        while True:
            before = len(self._transport.incoming)
            code = self._lib.gnutls_handshake(self._session)
            if code == gnutls.E_SUCCESS:
                self._verify()
                self.established = True
                return
            if code in (gnutls.E_AGAIN, gnutls.E_INTERRUPTED):
                if len(self._transport.incoming) in (0, before):
                    return
                continue
            distractions += 1
            if self._lib.gnutls_error_is_fatal(code) or distractions > _MAX_DISTRACTIONS:
                self._alert(code)
                raise TlsError(f"TLS handshake failed: {self._library.description(code)}")

    def _verify(self) -> None:
        credentials = self.credentials
        if credentials.kind != gnutls.CRD_CERTIFICATE or not credentials.verify_peer:
            return
        try:
            self.peer_name = verify_peer(self._session, self._hostname, server=credentials.server)
        except TlsError:
            self.refuse(gnutls.ALERT_BAD_CERTIFICATE)
            raise

    def _receive(self) -> bytes:
        received = bytearray()
        distractions = 0
        while True:
            before = len(self._transport.incoming)
            count = self._lib.gnutls_record_recv(self._session, self._buffer, _BUFFER_SIZE)
            if count > 0:
                received += self._ffi.buffer(self._buffer, count)
            elif count == 0:
                self.ended = True
                break
            elif count in (gnutls.E_AGAIN, gnutls.E_INTERRUPTED):
                # After a message of its own, such as new keys, the library looks no further.
                if len(self._transport.incoming) in (0, before):
                    break
            else:
                distractions += 1
                fatal = count == gnutls.E_REHANDSHAKE or self._lib.gnutls_error_is_fatal(count)
                if fatal or distractions > _MAX_DISTRACTIONS:
                    self._alert(count)
                    self.ended = True
                    if received:  # which came before
                        break
                    raise TlsError(
                        f"Cannot read from TLS channel: {self._library.description(count)}"
                    )
        return bytes(received)

    def _alert(self, code: int) -> None:
        """Tell the peer what it has done wrong, unless it has told us."""
        self._failed = True
        if code not in (gnutls.E_FATAL_ALERT_RECEIVED, gnutls.E_PREMATURE_TERMINATION):
            self._lib.gnutls_alert_send_appropriate(self._session, code)
