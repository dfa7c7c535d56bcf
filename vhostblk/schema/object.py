# SPDX-License-Identifier: Apache-2.0
"""User-creatable objects: `ObjectOptions` (`qapi/qom.json`).

What is an object type's own is in `schema.objects`, loaded when it is first named.
"""

from __future__ import annotations

from vhostblk.schema import plugins
from vhostblk.schema.base import OpenUnion
from vhostblk.schema.branches import Branches

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


_BRANCHES = Branches(
    {
        "authz-list": "vhostblk.schema.objects.authz:AuthZListProperties",
        "authz-list-file": "vhostblk.schema.objects.authz:AuthZListFileProperties",
        "authz-listfile": "vhostblk.schema.objects.authz:AuthZListfileProperties",
        "authz-pam": "vhostblk.schema.objects.authz:AuthZPAMProperties",
        "authz-simple": "vhostblk.schema.objects.authz:AuthZSimpleProperties",
        "iothread": "vhostblk.schema.objects.iothread:IothreadProperties",
        "secret": "vhostblk.schema.objects.secret:SecretProperties",
        "secret_keyring": "vhostblk.schema.objects.secret:SecretKeyringProperties",
        "throttle-group": "vhostblk.schema.objects.throttle_group:ThrottleGroupProperties",
    },
    plugins.OBJECTS,
    {},
)
