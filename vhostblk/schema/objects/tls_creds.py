# SPDX-License-Identifier: Apache-2.0
"""Options of TLS credentials."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.object import ObjectOptions


class QCryptoTLSCredsEndpoint(Enum):
    """Which side of connections they are for."""

    CLIENT = "client"
    SERVER = "server"


class TlsCredsProperties(ObjectOptions, kw_only=True, frozen=True):
    """What all kinds have in common."""

    verify_peer: bool = True
    #: Where the files are.
    dir: str | UnsetType = UNSET
    endpoint: QCryptoTLSCredsEndpoint = QCryptoTLSCredsEndpoint.CLIENT
    #: A priority string of GnuTLS.
    priority: str | UnsetType = UNSET


class TlsCredsX509Properties(TlsCredsProperties, tag="tls-creds-x509", kw_only=True, frozen=True):
    """Certificates; `passwordid`: the secret that the key is encrypted with."""

    sanity_check: bool = True
    passwordid: str | UnsetType = UNSET


class TlsCredsPskProperties(TlsCredsProperties, tag="tls-creds-psk", kw_only=True, frozen=True):
    """Keys that both sides know; `username`: the client's name, `qemu` by default."""

    username: str | UnsetType = UNSET


class TlsCredsAnonProperties(TlsCredsProperties, tag="tls-creds-anon", kw_only=True, frozen=True):
    """Encryption without proof."""


class TlsCipherSuitesProperties(
    TlsCredsProperties, tag="tls-cipher-suites", kw_only=True, frozen=True
):
    """The cipher suites that a priority string stands for."""
