# SPDX-License-Identifier: Apache-2.0
"""User-creatable objects: `ObjectOptions` (`qapi/qom.json`).

What is an object type's own is in `schema.objects`, loaded when it is first named.
"""

from __future__ import annotations

from typing import NamedTuple

from vhostblk.schema import plugins
from vhostblk.schema.base import OpenUnion
from vhostblk.schema.branches import Branches, Parts

#: Members of secrets that logs and messages may show; others may be the secret, misspelled.
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


_OPTIONS = "vhostblk.schema.objects"
_CLASSES = "vhostblk.objects"


class ObjectType(NamedTuple):
    """The parts of an object type, `module:name`, which are imported when they are first used."""

    #: A subclass of `ObjectOptions`.
    options: str
    #: A subclass of `objects.base.UserObject`.
    made_of: str


#: The table of object types. Those of other packages are found by `schema.plugins`.
OBJECT_TYPES: dict[str, ObjectType] = {
    "authz-list": ObjectType(
        f"{_OPTIONS}.authz:AuthZListProperties", f"{_CLASSES}.authz_list:AuthzListObject"
    ),
    "authz-list-file": ObjectType(
        f"{_OPTIONS}.authz:AuthZListFileProperties",
        f"{_CLASSES}.authz_list_file:AuthzListFileObject",
    ),
    "authz-listfile": ObjectType(
        f"{_OPTIONS}.authz:AuthZListfileProperties",
        f"{_CLASSES}.authz_list_file:AuthzListfileObject",
    ),
    "authz-pam": ObjectType(
        f"{_OPTIONS}.authz:AuthZPAMProperties", f"{_CLASSES}.authz_pam:AuthzPamObject"
    ),
    "authz-simple": ObjectType(
        f"{_OPTIONS}.authz:AuthZSimpleProperties", f"{_CLASSES}.authz_simple:AuthzSimpleObject"
    ),
    "iothread": ObjectType(
        f"{_OPTIONS}.iothread:IothreadProperties", f"{_CLASSES}.iothread:IothreadObject"
    ),
    "secret": ObjectType(f"{_OPTIONS}.secret:SecretProperties", f"{_CLASSES}.secret:SecretObject"),
    "secret_keyring": ObjectType(
        f"{_OPTIONS}.secret:SecretKeyringProperties",
        f"{_CLASSES}.secret_keyring:SecretKeyringObject",
    ),
    "throttle-group": ObjectType(
        f"{_OPTIONS}.throttle_group:ThrottleGroupProperties",
        f"{_CLASSES}.throttle_group:ThrottleGroupObject",
    ),
}

_BRANCHES = Branches(Parts(OBJECT_TYPES, "options"), plugins.OBJECTS, {})
