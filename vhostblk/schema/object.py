# SPDX-License-Identifier: Apache-2.0
"""User-creatable objects: `ObjectOptions` (`qapi/qom.json`).

The options of each object type are in `schema.objects`; its module is loaded when it is first
named.
"""

from __future__ import annotations

from typing import NamedTuple

from vhostblk.schema import plugins
from vhostblk.schema.base import OpenUnion
from vhostblk.schema.branches import Branches, Parts

#: Members of secrets that logs and messages may show; a misspelled one may contain the secret.
SHOWN_MEMBERS = frozenset({"qom-type", "id", "format", "keyid", "iv", "file", "serial"})


class ObjectOptions(OpenUnion, tag_field="qom-type", kw_only=True, frozen=True):
    """Members common to all objects."""

    id: str

    @classmethod
    def find_branch(cls, tag: str) -> type[ObjectOptions] | None:
        """Return the options of an object type; raises OptionError for a plug-in that is broken."""
        found: type[ObjectOptions] | None = _BRANCHES.find(tag)
        return found

    @classmethod
    def branch_names(cls) -> list[str]:
        """Return the names of all object types, plug-ins included."""
        return _BRANCHES.names()


class ObjectType(NamedTuple):
    """The parts of an object type, `module:name`, which are imported when they are first used."""

    #: A subclass of `ObjectOptions`.
    options: str
    #: A subclass of `objects.base.UserObject`.
    made_of: str


#: The table of object types. Those of other packages are found by `schema.plugins`.
OBJECT_TYPES: dict[str, ObjectType] = {
    "authz-list": ObjectType(
        "vhostblk.schema.objects.authz:AuthZListProperties",
        "vhostblk.objects.authz_list:AuthzListObject",
    ),
    "authz-list-file": ObjectType(
        "vhostblk.schema.objects.authz:AuthZListFileProperties",
        "vhostblk.objects.authz_list_file:AuthzListFileObject",
    ),
    "authz-listfile": ObjectType(
        "vhostblk.schema.objects.authz:AuthZListfileProperties",
        "vhostblk.objects.authz_list_file:AuthzListfileObject",
    ),
    "authz-pam": ObjectType(
        "vhostblk.schema.objects.authz:AuthZPAMProperties",
        "vhostblk.objects.authz_pam:AuthzPamObject",
    ),
    "authz-simple": ObjectType(
        "vhostblk.schema.objects.authz:AuthZSimpleProperties",
        "vhostblk.objects.authz_simple:AuthzSimpleObject",
    ),
    "iothread": ObjectType(
        "vhostblk.schema.objects.iothread:IothreadProperties",
        "vhostblk.objects.iothread:IothreadObject",
    ),
    "pr-manager-helper": ObjectType(
        "vhostblk.schema.objects.pr_manager:PrManagerHelperProperties",
        "vhostblk.objects.pr_manager:PrManagerHelperObject",
    ),
    "secret": ObjectType(
        "vhostblk.schema.objects.secret:SecretProperties",
        "vhostblk.objects.secret:SecretObject",
    ),
    "secret_keyring": ObjectType(
        "vhostblk.schema.objects.secret:SecretKeyringProperties",
        "vhostblk.objects.secret_keyring:SecretKeyringObject",
    ),
    "throttle-group": ObjectType(
        "vhostblk.schema.objects.throttle_group:ThrottleGroupProperties",
        "vhostblk.objects.throttle_group:ThrottleGroupObject",
    ),
    "tls-cipher-suites": ObjectType(
        "vhostblk.schema.objects.tls_creds:TlsCipherSuitesProperties",
        "vhostblk.objects.tls_cipher_suites:TlsCipherSuitesObject",
    ),
    "tls-creds-anon": ObjectType(
        "vhostblk.schema.objects.tls_creds:TlsCredsAnonProperties",
        "vhostblk.objects.tls_creds_anon:TlsCredsAnonObject",
    ),
    "tls-creds-psk": ObjectType(
        "vhostblk.schema.objects.tls_creds:TlsCredsPskProperties",
        "vhostblk.objects.tls_creds_psk:TlsCredsPskObject",
    ),
    "tls-creds-x509": ObjectType(
        "vhostblk.schema.objects.tls_creds:TlsCredsX509Properties",
        "vhostblk.objects.tls_creds_x509:TlsCredsX509Object",
    ),
    "x-vhostblk-pr-manager-kernel": ObjectType(
        "vhostblk.schema.objects.pr_manager:PrManagerKernelProperties",
        "vhostblk.objects.pr_manager:PrManagerKernelObject",
    ),
}

_BRANCHES = Branches(Parts(OBJECT_TYPES, "options"), plugins.OBJECTS, {})
