# SPDX-License-Identifier: Apache-2.0
"""Authorization by a list of rules in a file.

With `refresh` each question looks whether the file is another one now, by its identity, size and
times. So it doesn't matter how the file is replaced: written in place, renamed over, by a symbolic
link that changes, or on another machine. A file that can't be read or understood allows nobody, and
the log says why, once for each state of the file; a file that is gone leaves the last rules.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vhostblk.crypto import files
from vhostblk.errors import VhostblkError, errors_as
from vhostblk.objects.authz import AuthzObject
from vhostblk.objects.authz_rules import allows
from vhostblk.objects.tree import PropertyError
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema import json_text
from vhostblk.schema.convert import from_json
from vhostblk.schema.errors import OptionError
from vhostblk.schema.objects.authz import (
    AuthZList,
    AuthZListFileProperties,
    AuthZListfileProperties,
)

if TYPE_CHECKING:
    from vhostblk.objects.base import Surroundings
    from vhostblk.schema.object import ObjectOptions

logger = logging.getLogger(__name__)

_State = tuple[int, ...]


class AuthzListFileObject(AuthzObject):
    """The rules of the file as it is."""

    options_type: ClassVar[type[ObjectOptions]] = AuthZListFileProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType(
            "authz-list-file",
            "authz",
            interface="user-creatable",
            properties={"filename": "string", "refresh": "bool"},
        )
    )
    reads_files: ClassVar[bool] = True
    blocks = True

    options: AuthZListFileProperties

    def __init__(self, options: AuthZListFileProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        #: Questions come on several threads.
        self._lock = threading.Lock()
        self._path = str(Path(options.filename).absolute())  # a daemon changes its directory
        self._state = _state(self._path)
        #: None: the file makes no sense, and nobody is allowed.
        self._rules: AuthZList | None = load(options.filename)
        files.warn_if_open(self._path, secret=False)

    @property
    def files(self) -> list[str]:
        """The directory, in which the file is replaced."""
        return [str(Path(self._path).parent)] if self.options.refresh else []

    def is_allowed(self, identity: str) -> bool:
        """Look for the first rule that fits."""
        with self._lock:
            if self.options.refresh:
                self._refresh()
            return self._rules is not None and allows(self._rules, identity)

    def write(self, name: str, value: object) -> None:
        """Refuse: another file is another object."""
        raise PropertyError("Property cannot be set after initialization")

    def _refresh(self) -> None:
        state = _state(self._path)
        if state is None or state == self._state:
            return
        try:
            self._rules = load(self._path)
        except VhostblkError as error:
            self._rules = None
            logger.error("authorization '%s' allows nobody: %s", self.id, error)
        self._state = state


class AuthzListfileObject(AuthzListFileObject):
    """The same by the name that QEMU's schema has for it."""

    options_type: ClassVar[type[ObjectOptions]] = AuthZListfileProperties


def load(path: str) -> AuthZList:
    """Read rules from a JSON file; raises VhostblkError."""
    try:
        with files.read_secret(path) as content, content.view as view:
            text = bytes(view)
    except OSError as error:
        raise OptionError(f"Unable to read '{path}': {files.read_failure(path, error)}") from error
    with errors_as(OptionError, f"File '{path}'", of=(OptionError, RecursionError), file=path):
        tree = json_text.parse(text.decode(errors="surrogateescape"))
        if not isinstance(tree, dict):
            raise OptionError("it must contain a JSON object")
        rules: AuthZList = from_json(AuthZList, tree)
    return rules


def _state(path: str) -> _State | None:
    """Return what tells one state of a file from another; None: it isn't there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
