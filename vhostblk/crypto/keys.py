# SPDX-License-Identifier: Apache-2.0
"""What objects offer to those that name them; secrets are one kind of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from vhostblk.crypto.errors import SecretError
from vhostblk.crypto.secret_bytes import SecretBytes

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


class Offering(Protocol):
    """An object, as far as it matters here."""

    @property
    def offer(self) -> object:
        """What others get that name the object; None: nothing."""


class Keys:
    """The objects of one daemon, by id."""

    def __init__(self, objects: Mapping[str, Offering]) -> None:
        self._objects = objects

    def knows(self, object_id: str) -> bool:
        """Return whether there is such an object."""
        return object_id in self._objects

    def find(self, object_id: str, kind: type[T]) -> T | None:
        """Return what an object offers, if it is of this kind."""
        found = self._objects.get(object_id)
        offer = None if found is None else found.offer
        return offer if isinstance(offer, kind) else None

    def secret(self, object_id: str) -> SecretBytes:
        """Return a copy of a secret, to be wiped by the caller; raises SecretError."""
        found = self.find(object_id, SecretBytes)
        if found is not None:
            return found.copy()
        if self.knows(object_id):
            raise SecretError(f"Object with id '{object_id}' is not a secret")
        raise SecretError(f"No secret with id '{object_id}'")

    def text_secret(self, object_id: str) -> SecretBytes:
        """Return a copy of a secret that is text; raises SecretError."""
        from vhostblk.crypto.formats import is_text

        found = self.secret(object_id)
        with found.view as view:
            if is_text(view):
                return found
        found.wipe()
        raise SecretError(f"Data from secret {object_id} is not valid UTF-8")
