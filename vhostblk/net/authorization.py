# SPDX-License-Identifier: Apache-2.0
"""Whether a peer may do what it wants, by the name that it has proved to have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vhostblk.net.errors import AuthorizationError
from vhostblk.threads import in_thread

if TYPE_CHECKING:
    from vhostblk.crypto.keys import Keys


class Authorizer(ABC):
    """What an authorization object offers."""

    #: `is_allowed` reads files or waits for others, and is called on a thread.
    blocks: bool = False

    @abstractmethod
    def is_allowed(self, identity: str) -> bool:
        """Return whether a peer with this name is allowed; raises VhostblkError: it isn't."""


async def is_allowed(keys: Keys, authz_id: str, identity: str) -> bool:
    """Ask the authorization object with this id; raises VhostblkError, which means no."""
    found = keys.find(authz_id, Authorizer)  # type: ignore[type-abstract]
    if found is None:
        if keys.knows(authz_id):
            raise AuthorizationError(f"Object '{authz_id}' is not a QAuthZ subclass")
        raise AuthorizationError(f"Cannot find QAuthZ object ID {authz_id}")
    if found.blocks:
        return await in_thread(lambda: found.is_allowed(identity))
    return found.is_allowed(identity)
