# SPDX-License-Identifier: Apache-2.0
"""Whether our own certificates can work (`sanity-check`): else they would fail later, unseen."""

from __future__ import annotations

import os
import time
from typing import Any

from vhostblk.crypto import files, gnutls
from vhostblk.crypto.errors import SecretError
from vhostblk.net.tls.errors import CredentialsError
from vhostblk.net.tls.verify import reason_of

#: Authorities in one file, at most.
_MAX_AUTHORITIES = 16


def check(ca_path: str, path: str | None, *, server: bool) -> None:
    """Check a certificate and the authority's; raises CredentialsError."""
    certificate = None
    if path is not None and os.access(path, os.R_OK):
        certificate = _load(path, server=server)
    authorities = _load_authorities(ca_path) if os.access(ca_path, os.R_OK) else []
    if certificate is not None:
        assert path is not None
        side = "server" if server else "client"
        _check_times(certificate, f"{side} certificate {path}")
        _check_constraints(certificate, path, side)
        _check_usage(certificate, path, authority=False)
        _check_purpose(certificate, path, side)
    for authority in authorities:
        _check_times(authority, f"CA certificate {ca_path}")
        _check_authority(authority, ca_path)
        _check_usage(authority, ca_path, authority=True)
    if certificate is not None and authorities:
        assert path is not None
        _check_pair(certificate, path, authorities, ca_path, server=server)


def _read(path: str) -> bytes:
    try:
        with files.read_secret(path) as content, content.view as view:
            return bytes(view).partition(b"\0")[0]
    except OSError as error:
        raise CredentialsError(
            f"Cannot load CA cert list {path}: {files.read_failure(path, error)}"
        ) from error


def _load(path: str, *, server: bool) -> Any:
    library = gnutls.library()
    try:
        certificate = library.new(
            "gnutls_x509_crt_t",
            library.lib.gnutls_x509_crt_init,
            library.lib.gnutls_x509_crt_deinit,
        )
    except SecretError as error:
        raise CredentialsError(f"Unable to initialize certificate: {error}") from error
    datum = library.datum(_read(path))
    code = library.lib.gnutls_x509_crt_import(certificate, datum, gnutls.FORMAT_PEM)
    if code < 0:
        side = "server" if server else "client"
        raise CredentialsError(
            f"Unable to import {side} certificate {path}: {library.description(code)}"
        )
    return certificate


def _load_authorities(path: str) -> list[Any]:
    library = gnutls.library()
    ffi, lib = library.ffi, library.lib
    found = ffi.new(f"gnutls_x509_crt_t[{_MAX_AUTHORITIES}]")
    count = ffi.new("unsigned int *", _MAX_AUTHORITIES)
    datum = library.datum(_read(path))
    if lib.gnutls_x509_crt_list_import(found, count, datum, gnutls.FORMAT_PEM, 0) < 0:
        raise CredentialsError(f"Unable to import CA certificate list {path}")
    return [ffi.gc(found[index], lib.gnutls_x509_crt_deinit) for index in range(count[0])]


def _check_times(certificate: Any, what: str) -> None:
    lib = gnutls.library().lib
    now = time.time()
    if lib.gnutls_x509_crt_get_expiration_time(certificate) < int(now):
        raise CredentialsError(f"The {what} has expired")
    if lib.gnutls_x509_crt_get_activation_time(certificate) > int(now):
        raise CredentialsError(f"The {what} is not yet active")


def _basic_constraints(certificate: Any, path: str) -> bool | None:
    """Return whether a certificate is an authority's; None: it doesn't say."""
    library = gnutls.library()
    null = library.ffi.NULL
    status = library.lib.gnutls_x509_crt_get_basic_constraints(certificate, null, null, null)
    if status == gnutls.E_REQUESTED_DATA_NOT_AVAILABLE:
        return None
    if status < 0:
        raise CredentialsError(
            f"Unable to query certificate {path} basic constraints: {library.description(status)}"
        )
    return bool(status)


def _check_constraints(certificate: Any, path: str, side: str) -> None:
    if _basic_constraints(certificate, path):
        raise CredentialsError(
            f"The certificate {path} basic constraints show a CA, but we need one for a {side}"
        )


def _check_authority(certificate: Any, path: str) -> None:
    is_authority = _basic_constraints(certificate, path)
    if is_authority is None:
        raise CredentialsError(f"The certificate {path} is missing basic constraints for a CA")
    if not is_authority:
        raise CredentialsError(f"The certificate {path} basic constraints do not show a CA")


def _check_usage(certificate: Any, path: str, *, authority: bool) -> None:
    library = gnutls.library()
    usage = library.ffi.new("unsigned int *")
    critical = library.ffi.new("unsigned int *")
    status = library.lib.gnutls_x509_crt_get_key_usage(certificate, usage, critical)
    if status == gnutls.E_REQUESTED_DATA_NOT_AVAILABLE:
        return
    if status < 0:
        raise CredentialsError(
            f"Unable to query certificate {path} key usage: {library.description(status)}"
        )
    needed = gnutls.KEY_KEY_CERT_SIGN if authority else gnutls.KEY_DIGITAL_SIGNATURE
    if critical[0] and not usage[0] & needed:
        what = "certificate signing" if authority else "digital signature"
        raise CredentialsError(f"Certificate {path} usage does not permit {what}")


def _check_purpose(certificate: Any, path: str, side: str) -> None:
    wanted = gnutls.PURPOSE_SERVER if side == "server" else gnutls.PURPOSE_CLIENT
    found = _purposes(certificate, path)
    allowed = not found or any(purpose in (wanted, gnutls.PURPOSE_ANY) for purpose, _ in found)
    if not allowed and any(critical for _, critical in found):
        raise CredentialsError(f"Certificate {path} purpose does not allow use with a TLS {side}")


def _purposes(certificate: Any, path: str) -> list[tuple[str, bool]]:
    """Return what a certificate says that it is for, and whether that is critical."""
    library = gnutls.library()
    ffi, query = library.ffi, library.lib.gnutls_x509_crt_get_key_purpose_oid
    found: list[tuple[str, bool]] = []
    size, critical = ffi.new("size_t *"), ffi.new("unsigned int *")
    while True:
        size[0] = 0
        status = query(certificate, len(found), ffi.NULL, size, ffi.NULL)
        if status == gnutls.E_REQUESTED_DATA_NOT_AVAILABLE:
            return found
        if status == gnutls.E_SHORT_MEMORY_BUFFER:
            buffer = ffi.new("char[]", size[0])
            status = query(certificate, len(found), buffer, size, critical)
        if status < 0:
            raise CredentialsError(
                f"Unable to query certificate {path} key purpose: {library.description(status)}"
            )
        found.append((ffi.string(buffer).decode(), bool(critical[0])))


def _check_pair(
    certificate: Any, path: str, authorities: list[Any], ca_path: str, *, server: bool
) -> None:
    library = gnutls.library()
    ffi = library.ffi
    status = ffi.new("unsigned int *")
    code = library.lib.gnutls_x509_crt_list_verify(
        *(ffi.new("gnutls_x509_crt_t[]", [certificate]), 1),
        *(ffi.new("gnutls_x509_crt_t[]", authorities), len(authorities)),
        *(ffi.NULL, 0, 0, status),
    )
    if code < 0:
        side = "server" if server else "client"
        raise CredentialsError(
            f"Unable to verify {side} certificate {path} against CA certificate {ca_path}"
        )
    if status[0]:
        raise CredentialsError(
            f"Our own certificate {path} failed validation against {ca_path}:"
            f" {reason_of(status[0])}"
        )
