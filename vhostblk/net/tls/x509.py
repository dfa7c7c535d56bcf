# SPDX-License-Identifier: Apache-2.0
"""Credentials that are certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.crypto import gnutls
from vhostblk.net.tls import checks
from vhostblk.net.tls.credentials import Credentials, allocate, set_dh_parameters
from vhostblk.net.tls.errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.crypto.secret_bytes import SecretBytes
    from vhostblk.net.tls.credentials import Source

CA_CERT = "ca-cert.pem"
CA_CRL = "ca-crl.pem"


class X509Credentials(Credentials):
    """An authority, and a certificate with its key, which a client may lack."""

    kind = gnutls.CRD_CERTIFICATE
    priority_failure = "Cannot set default TLS session priority"

    def __init__(
        self,
        source: Source,
        *,
        priority: str | None,
        verify_peer: bool,
        sanity_check: bool,
        password: Callable[[], SecretBytes | None],
    ) -> None:
        """Load all files; `password` gives what the key is encrypted with. Raises VhostblkError."""
        super().__init__(source, priority=priority, verify_peer=verify_peer)
        server = source.server
        side = "server" if server else "client"
        ca = source.find(CA_CERT, required=True)
        crl = source.find(CA_CRL, required=False) if server else None
        certificate = source.find(f"{side}-cert.pem", required=server)
        key = source.find(f"{side}-key.pem", required=server)
        assert ca is not None
        if sanity_check:
            checks.check(ca, certificate, server=server)
        self.handle = allocate("certificate", "")
        self._load_authority(ca)
        if certificate is not None and key is not None:
            self._load_key(certificate, key, password())
        if crl is not None:
            self._load_revoked(crl)
        if server:
            lib = gnutls.library().lib
            set_dh_parameters(
                self,
                lambda parameters: lib.gnutls_certificate_set_dh_params(self.handle, parameters),
                lambda: lib.gnutls_certificate_set_known_dh_params(
                    self.handle, gnutls.SEC_PARAM_MEDIUM
                ),
            )

    @property
    def verifies_names(self) -> bool:
        """Whether peers prove a name."""
        return self.verify_peer

    def _load_authority(self, path: str) -> None:
        library = gnutls.library()
        code = library.lib.gnutls_certificate_set_x509_trust_file(
            self.handle, _encoded(path), gnutls.FORMAT_PEM
        )
        if code < 0:
            raise CredentialsError(
                f"Cannot load CA certificate '{path}': {library.description(code)}"
            )

    def _load_key(self, path: str, key_path: str, password: SecretBytes | None) -> None:
        library = gnutls.library()
        ffi, lib = library.ffi, library.lib
        view = None if password is None else password.terminated
        try:
            code = lib.gnutls_certificate_set_x509_key_file2(
                self.handle,
                _encoded(path),
                _encoded(key_path),
                gnutls.FORMAT_PEM,
                ffi.NULL if view is None else ffi.from_buffer("char[]", view[:]),
                0,
            )
        finally:
            if view is not None and password is not None:
                view.release()
                password.wipe()
        if code < 0:
            raise CredentialsError(
                f"Cannot load certificate '{path}' & key '{key_path}': {library.description(code)}"
            )

    def _load_revoked(self, path: str) -> None:
        library = gnutls.library()
        code = library.lib.gnutls_certificate_set_x509_crl_file(
            self.handle, _encoded(path), gnutls.FORMAT_PEM
        )
        if code < 0:
            raise CredentialsError(f"Cannot load CRL '{path}': {library.description(code)}")


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
