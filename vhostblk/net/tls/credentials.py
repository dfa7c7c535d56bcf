# SPDX-License-Identifier: Apache-2.0
"""Credentials: what one side of a session has to show, and to check the other side with."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vhostblk.crypto import files, gnutls
from vhostblk.crypto.errors import SecretError
from vhostblk.errors import reason
from vhostblk.net.tls.errors import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.crypto.keys import Keys
    from vhostblk.crypto.secret_bytes import SecretBytes

DEFAULT_PRIORITY = "NORMAL"
DH_PARAMETERS = "dh-params.pem"


@dataclass(frozen=True, slots=True)
class Source:
    """Where credentials come from, and which side of a connection they are for."""

    #: None: nowhere.
    directory: str | None
    server: bool

    def find(self, name: str, *, required: bool) -> str | None:
        """Return the path of a file; None where it is missing and may be.

        Raises CredentialsError.
        """
        if self.directory is None:
            if required:
                raise CredentialsError("Missing 'dir' property value")
            return None
        path = f"{self.directory}/{name}"
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not required:
                return None
            raise CredentialsError(
                f"Unable to access credentials {path}: {reason(error)}", file=path
            ) from error
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise CredentialsError(f"Unable to access credentials {path}: Not a regular file")
        files.warn_if_open(path, secret=name.endswith(("-key.pem", ".psk")))
        return path


class Credentials:
    """Credentials that are loaded, shared by the sessions that they were used for."""

    #: `gnutls_credentials_type_t`.
    kind: int
    #: What is added to the priority string.
    additional_priority = ""
    #: The words for a priority string that is wrong.
    priority_failure = "Unable to set TLS session priority"
    #: There is something to `refresh`.
    refreshes = False

    def __init__(self, source: Source, *, priority: str | None, verify_peer: bool) -> None:
        self.source = source
        self.verify_peer = verify_peer
        self.priority = f"{priority or DEFAULT_PRIORITY}{self.additional_priority}"
        #: The library's object.
        self.handle: Any = None
        #: What the handle refers to.
        self.dh_parameters: Any = None

    @property
    def server(self) -> bool:
        """Whether they are a server's."""
        return self.source.server

    @property
    def verifies_names(self) -> bool:
        """Whether peers prove a name that authorization can be asked about."""
        return False

    def refresh(self) -> None:
        """Look at files that each handshake reads; called on a thread before it."""

    def find_key(self, name: bytes) -> SecretBytes | None:
        """Return the key that a client with this name must have; None: nobody has that name."""
        return None


class AnonymousCredentials(Credentials):
    """Nobody proves anything: this helps against listeners only."""

    kind = gnutls.CRD_ANON
    additional_priority = ":+ANON-DH"

    def __init__(self, source: Source, *, priority: str | None, verify_peer: bool) -> None:
        super().__init__(source, priority=priority, verify_peer=verify_peer)
        lib = gnutls.library().lib
        if not source.server:
            self.handle = allocate("anon", "client")
            return
        self.handle = allocate("anon", "server")
        set_dh_parameters(
            self,
            lambda parameters: lib.gnutls_anon_set_server_dh_params(self.handle, parameters),
            lambda: lib.gnutls_anon_set_server_known_dh_params(
                self.handle, gnutls.SEC_PARAM_MEDIUM
            ),
        )


def allocate(kind: str, side: str) -> Any:
    """Make the library's object for one kind of credentials; raises CredentialsError."""
    library = gnutls.library()
    middle = f"{kind}_%s_{side}_credentials" if side else f"{kind}_%s_credentials"
    name = f"gnutls_{kind}_{side}_credentials_t" if side else f"gnutls_{kind}_credentials_t"
    make = getattr(library.lib, f"gnutls_{middle % 'allocate'}")
    free = getattr(library.lib, f"gnutls_{middle % 'free'}")
    try:
        return library.new(name, make, free)
    except SecretError as error:
        raise CredentialsError(f"Cannot allocate credentials: {error}") from error


def set_dh_parameters(
    credentials: Credentials,
    set_read: Callable[[Any], object],
    set_known: Callable[[], object],
) -> None:
    """Give a server the parameters for Diffie-Hellman with groups of its own, before TLS 1.3.

    Raises CredentialsError. Where there is no file, those of RFC 7919 are used: they are as good as
    any, and cost no time to make.
    """
    path = credentials.source.find(DH_PARAMETERS, required=False)
    if path is None:
        set_known()
        return
    library = gnutls.library()
    lib = library.lib
    try:
        with files.read_secret(path) as content, content.terminated as view:
            parameters = library.new(
                "gnutls_dh_params_t", lib.gnutls_dh_params_init, lib.gnutls_dh_params_deinit
            )
            datum = library.datum(view[: len(content)] if len(content) else view[:1])
            datum.size = len(content)
            code = lib.gnutls_dh_params_import_pkcs3(parameters, datum, gnutls.FORMAT_PEM)
    except OSError as error:
        raise CredentialsError(files.read_failure(path, error)) from error
    except SecretError as error:
        raise CredentialsError(f"Unable to initialize DH parameters: {error}") from error
    if code < 0:
        raise CredentialsError(
            f"Unable to load DH parameters from {path}: {library.description(code)}"
        )
    set_read(parameters)
    credentials.dh_parameters = parameters


def find_credentials(keys: Keys, object_id: str, *, server: bool) -> Credentials:
    """Return an object's credentials for one side of connections; raises CredentialsError."""
    found = keys.find(object_id, Credentials)
    if found is None:
        if keys.knows(object_id):
            raise CredentialsError(f"Object with id '{object_id}' is not TLS credentials")
        raise CredentialsError(f"No TLS credentials with id '{object_id}'")
    if found.server != server:
        side = "server" if server else "client"
        raise CredentialsError(f"Expected TLS credentials for a {side} endpoint")
    return found
