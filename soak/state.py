# SPDX-License-Identifier: Apache-2.0
"""What of a soak is done: a file that is whole at any time."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class StateError(Exception):
    """The file isn't one of ours."""


@dataclass(slots=True)
class Progress:
    """How far a part is, in its latest run."""

    run: int = 0
    #: The length that was asked for.
    length: int = 0
    #: Slices that were well.
    done: int = 0
    #: Seconds that they took.
    seconds: float = 0.0


@dataclass(slots=True)
class State:
    """How far all parts are."""

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
        """Write the file, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        with unfinished.open("w") as file:
            json.dump(asdict(self)["parts"], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
