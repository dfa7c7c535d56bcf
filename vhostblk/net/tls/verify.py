# SPDX-License-Identifier: Apache-2.0
"""Whether the certificate that a peer has shown is good, and whose it is."""

from __future__ import annotations

import time
from typing import Any

from vhostblk.crypto import gnutls
from vhostblk.crypto.errors import SecretError
from vhostblk.net.tls.errors import TlsError


def reason_of(status: int) -> str:
    """Describe a status of `gnutls_certificate_status_t` that is not 0."""
    reason = "Invalid certificate"
    for flag, text in (
        (gnutls.CERT_INVALID, "The certificate is not trusted"),
        (gnutls.CERT_SIGNER_NOT_FOUND, "The certificate hasn't got a known issuer"),
        (gnutls.CERT_REVOKED, "The certificate has been revoked"),
        (gnutls.CERT_INSECURE_ALGORITHM, "The certificate uses an insecure algorithm"),
    ):
        if status & flag:
            reason = text
    return reason


def verify_peer(session: Any, hostname: str | None, *, server: bool) -> str:
    """Return the peer's distinguished name; raises TlsError.

    A client wants the server's certificate to be one for `hostname`.
    """
    library = gnutls.library()
    ffi, lib = library.ffi, library.lib
    status = ffi.new("unsigned int *")
    code = lib.gnutls_certificate_verify_peers2(session, status)
    if code < 0:
        raise TlsError(f"Verify failed: {library.description(code)}")
    if status[0]:
        raise TlsError(reason_of(status[0]))
    count = ffi.new("unsigned int *")
    chain = lib.gnutls_certificate_get_peers(session, count)
    if chain == ffi.NULL or not count[0]:
        raise TlsError("No certificate peers")
    certificates = [_import(chain + index) for index in range(count[0])]
    now = int(time.time())
    for certificate in certificates:
        if lib.gnutls_x509_crt_get_expiration_time(certificate) < now:
            raise TlsError("The certificate has expired")
        if lib.gnutls_x509_crt_get_activation_time(certificate) > now:
            raise TlsError("The certificate is not yet activated")
    if not server:
        if hostname is None:
            raise TlsError("No hostname for certificate validation")
        name = hostname.encode("utf-8", "surrogateescape")
        if b"\0" in name or not lib.gnutls_x509_crt_check_hostname(certificates[0], name):
            raise TlsError(f"Certificate does not match the hostname {hostname}")
    return _distinguished_name(certificates[0])


def _import(datum: Any) -> Any:
    library = gnutls.library()
    lib = library.lib
    try:
        certificate = library.new(
            "gnutls_x509_crt_t", lib.gnutls_x509_crt_init, lib.gnutls_x509_crt_deinit
        )
    except SecretError as error:
        raise TlsError(f"Cannot initialize certificate: {error}") from error
    code = lib.gnutls_x509_crt_import(certificate, datum, gnutls.FORMAT_DER)
    if code < 0:
        raise TlsError(f"Cannot import certificate: {library.description(code)}")
    return certificate


def _distinguished_name(certificate: Any) -> str:
    library = gnutls.library()
    ffi = library.ffi
    size = ffi.new("size_t *", 1024)
    for _ in range(2):
        buffer = ffi.new("char[]", size[0])
        code = library.lib.gnutls_x509_crt_get_dn(certificate, buffer, size)
        if code != gnutls.E_SHORT_MEMORY_BUFFER:
            break
    if code < 0:
        raise TlsError(f"Cannot get client distinguished name: {library.description(code)}")
    text: bytes = ffi.string(buffer)
    return text.decode("utf-8", "surrogateescape")
