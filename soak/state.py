# SPDX-License-Identifier: Apache-2.0
"""The progress of a soak, in a file that is replaced atomically."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class StateError(Exception):
    """The file is not the state of a soak."""


@dataclass(slots=True)
class Progress:
    """The progress of a part in its latest run."""

    run: int = 0
    #: The length in seconds, from the command line.
    length: int = 0
    #: The number of slices that succeeded.
    done: int = 0
    #: The seconds that they took.
    seconds: float = 0.0


@dataclass(slots=True)
class State:
    """The progress of all parts."""

    parts: dict[str, Progress] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read the file, if there is one; raises StateError."""
        try:
            text = path.read_text()
        except FileNotFoundError:
            return cls()
        try:
            return cls({name: Progress(**part) for name, part in json.loads(text).items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StateError(f"{path} is not the state of a soak (remove it): {error}") from None

    def save(self, path: Path) -> None:
        """Replace the file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        with unfinished.open("w") as file:
            json.dump(asdict(self)["parts"], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
