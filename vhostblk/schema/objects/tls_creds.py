# SPDX-License-Identifier: Apache-2.0
"""Options of TLS credentials."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.object import ObjectOptions


class QCryptoTLSCredsEndpoint(Enum):
    """The side of connections that uses the credentials."""

    CLIENT = "client"
    SERVER = "server"


class TlsCredsProperties(ObjectOptions, kw_only=True, frozen=True):
    """Members common to all kinds of credentials."""

    verify_peer: bool = True
    #: The directory of the files.
    dir: str | UnsetType = UNSET
    endpoint: QCryptoTLSCredsEndpoint = QCryptoTLSCredsEndpoint.CLIENT
    #: A priority string of GnuTLS.
    priority: str | UnsetType = UNSET


class TlsCredsX509Properties(TlsCredsProperties, tag="tls-creds-x509", kw_only=True, frozen=True):
    """Certificates; `passwordid`: the secret with the password of the private key."""

    sanity_check: bool = True
    passwordid: str | UnsetType = UNSET


class TlsCredsPskProperties(TlsCredsProperties, tag="tls-creds-psk", kw_only=True, frozen=True):
    """Pre-shared keys; `username`: the client's name, `qemu` by default."""

    username: str | UnsetType = UNSET


class TlsCredsAnonProperties(TlsCredsProperties, tag="tls-creds-anon", kw_only=True, frozen=True):
    """Anonymous credentials: encryption without authentication."""


class TlsCipherSuitesProperties(
    TlsCredsProperties, tag="tls-cipher-suites", kw_only=True, frozen=True
):
    """The cipher suites that a priority string selects."""
