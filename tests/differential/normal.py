# SPDX-License-Identifier: Apache-2.0
"""Removing everything that depends on time and place from outcomes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_MADE_UP = re.compile(r"#block\d+")
#: Members of answers whose values are not compared: times, and the host storage of files.
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
    # The date of a snapshot, and its VM clock, which has no meaning in a storage daemon.
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( +\d+:\d\d:\d\d\.\d+)?"), "DATE"),
    (re.compile(r"disk size: .*"), "disk size: some"),
)


class Normalizer:
    """Normalizes the outcomes of one daemon; numbers generated names in order of appearance."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._names: dict[str, str] = {}

    def json(self, value: Any) -> Any:
        """Return a normalized answer or event."""
        if isinstance(value, dict):
            return {
                key: "#" if key in _VOLATILE else self.json(member) for key, member in value.items()
            }
        if isinstance(value, list):
            return [self.json(item) for item in value]
        return self._string(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """Return the normalized output of a program."""
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
    """Return the runs of equal bytes in data, as (length, byte)."""
    return [(len(run[0]), run[0][0]) for run in re.finditer(rb"(.)\1*", data, re.DOTALL)]
