# SPDX-License-Identifier: Apache-2.0
"""QEMU's older option syntax (`util/qemu-option.c`), which `--chardev` and `--trace` use.

    options = [ value ',' ] { option [ ',' ] }
    option  = name '=' value | name | 'no' name | 'help' | '?'

It is flat: dots in a name have no meaning. A comma in a value is doubled. A name without a value
means `on`, and with the prefix `no` it means `off`; QEMU warns of this form. If an option is given
twice, the last one counts, but the first `id`. The caller has a table of the names and their kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostblk.schema.errors import HelpRequestedError, OptionError
from vhostblk.schema.identifiers import is_identifier
from vhostblk.schema.numbers import parse_size, parse_uint64

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Kinds of values.
STRING = "str"
BOOLEAN = "bool"
NUMBER = "num"
SIZE = "size"

_TRUE = frozenset({"on", "yes", "true", "y"})
_FALSE = frozenset({"off", "no", "false", "n"})


class QemuOpts:
    """The options of one argument, checked against a table."""

    def __init__(self, kinds: Mapping[str, str], values: dict[str, str]) -> None:
        self._kinds = kinds
        self._values = values
        self.id = values.pop("id", None)

    @classmethod
    def checked(cls, kinds: Mapping[str, str], values: Mapping[str, str]) -> QemuOpts:
        """Check names and values against a table; raises OptionError."""
        for name, value in values.items():
            if name != "id":
                _check(name, value, kinds)
        return cls(kinds, dict(values))

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def string(self, name: str) -> str | None:
        """Return the text of an option; None if it was not given."""
        return self._values.get(name)

    def boolean(self, name: str, default: bool) -> bool:
        """Return a switch."""
        text = self._values.get(name)
        return default if text is None else text in _TRUE

    def number(self, name: str) -> int | None:
        """Return a number or size; None if it was not given."""
        text = self._values.get(name)
        if text is None:
            return None
        return parse_size(text) if self._kinds[name] == SIZE else parse_uint64(text)


def parse(text: str, implied_name: str, kinds: Mapping[str, str]) -> QemuOpts:
    """Parse an argument; raises OptionError, or HelpRequestedError if it asks for help."""
    pairs = _split(text, implied_name)
    values: dict[str, str] = {}
    wants_help = False
    for name, value in pairs:
        if name in ("help", "?") and value is None:
            wants_help = True
        elif value is None:
            _take_switch(values, name, kinds)
        elif name != "id" or "id" not in values:
            values[name] = value
    if wants_help or values.get(implied_name) in ("help", "?"):
        raise HelpRequestedError(dict(values))
    if "id" in values and not is_identifier(values["id"]):
        raise OptionError("Parameter 'id' expects an identifier")
    return QemuOpts.checked(kinds, values)


def _split(text: str, implied_name: str) -> list[tuple[str, str | None]]:
    """Return names and values; a name without a value has None."""
    pairs: list[tuple[str, str | None]] = []
    position = 0
    while position < len(text):
        equals, comma = text.find("=", position), text.find(",", position)
        if equals < 0 or -1 < comma < equals:
            word, after = _take_value(text, position)
            if position == 0 and word and word not in ("help", "?"):
                pairs.append((implied_name, word))
            elif word:
                pairs.append((word, None))
        else:
            value, after = _take_value(text, equals + 1)
            pairs.append((text[position:equals], value))
        position = after
    return pairs


def _take_value(text: str, start: int) -> tuple[str, int]:
    """Return the value at `start`, with single commas, and the position of the next option."""
    parts: list[str] = []
    while True:
        comma = text.find(",", start)
        if comma < 0:
            return "".join([*parts, text[start:]]), len(text)
        if text[comma + 1 : comma + 2] != ",":
            return "".join([*parts, text[start:comma]]), comma + 1
        parts.append(text[start : comma + 1])
        start = comma + 2


def _take_switch(values: dict[str, str], name: str, kinds: Mapping[str, str]) -> None:
    if name.startswith("no") and name not in kinds:
        values[name[2:]] = "off"
    else:
        values[name] = "on"


def _check(name: str, value: str, kinds: Mapping[str, str]) -> None:
    kind = kinds.get(name)
    if kind is None:
        raise OptionError(f"Invalid parameter '{name}'", option=name)
    if kind == BOOLEAN and value not in _TRUE and value not in _FALSE:
        raise OptionError(f"Parameter '{name}' expects 'on' or 'off'", option=name)
    if kind == NUMBER and parse_uint64(value) is None:
        raise OptionError(f"Parameter '{name}' expects a number", option=name)
    if kind == SIZE and parse_size(value) is None:
        raise OptionError(
            f"Parameter '{name}' expects a non-negative number below 2^64", option=name
        )
