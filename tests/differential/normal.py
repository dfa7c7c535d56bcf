# SPDX-License-Identifier: Apache-2.0
"""Takes out of outcomes what depends on time and place."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_MADE_UP = re.compile(r"#block\d+")
#: Times, and what a file takes on the host: members of answers whose values say nothing.
_VOLATILE = frozenset(
    {
        *("timestamp", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec", "actual-size"),
        *("rd_total_time_ns", "wr_total_time_ns", "flush_total_time_ns", "unmap_total_time_ns"),
        *("zone_append_total_time_ns", "idle_time_ns"),
    }
)
_TEXTS = (
    (re.compile(r"^\S*(qemu-storage-daemon|vhostblk): ", re.MULTILINE), "daemon: "),
    (re.compile(r"\bpid[ =:]+\d+"), "pid"),
    # Of a snapshot: when it was made, and the machine's clock, which a storage daemon has not.
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( +\d+:\d\d:\d\d\.\d+)?"), "DATE"),
    (re.compile(r"disk size: .*"), "disk size: some"),
)


class Normalizer:
    """Of one daemon, whose made-up names it numbers in the order in which they show."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._names: dict[str, str] = {}

    def json(self, value: Any) -> Any:
        """Return an answer or an event without what says nothing."""
        if isinstance(value, dict):
            return {
                key: "#" if key in _VOLATILE else self.json(member) for key, member in value.items()
            }
        if isinstance(value, list):
            return [self.json(item) for item in value]
        return self._string(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Return what a program has said without what says nothing."""
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict | list):  # qemu-img --output=json
            return json.dumps(self.json(value), indent=1)
        for pattern, instead in _TEXTS:
            text = pattern.sub(instead, text)
        return self._string(text)

    def _string(self, text: str) -> str:
        text = text.replace(self._directory, "{dir}")
        return _MADE_UP.sub(self._number, text)

    def _number(self, found: re.Match[str]) -> str:
        return self._names.setdefault(found[0], f"#block-{len(self._names) + 1}")


def runs_of(data: bytes | bytearray) -> list[tuple[int, int]]:
    """Describe data as (length, byte), one after the other."""
    return [(len(run[0]), run[0][0]) for run in re.finditer(rb"(.)\1*", data, re.DOTALL)]
