# SPDX-License-Identifier: Apache-2.0
"""Options written as JSON: RFC 8259, strings also in single quotes, no key twice (`qobject/`)."""

from __future__ import annotations

import json
import re

from vhostblk.schema.errors import OptionError

_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)

# What means one thing in QEMU's strings and another in those of RFC 8259.
_SPECIAL = re.compile(r"\\.|\"", re.DOTALL)
_REWRITTEN = {"\\'": "'", '"': '\\"'}


def parse(text: str) -> object:
    """Return the value of a JSON text; raises OptionError."""
    try:
        decoder = json.JSONDecoder(
            object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
        text = _STRING.sub(_double_quoted, text)
        value, end = decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()):
            raise OptionError("JSON parse error, premature EOI") from None
        raise OptionError(
            f"JSON parse error, {error.msg[0].lower()}{error.msg[1:]} at column {error.colno}"
        ) from None
    except RecursionError:
        raise OptionError("JSON parse error, nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise OptionError("JSON parse error, number too long") from None
    if text[end:].strip(" \t\r\n"):
        raise OptionError("Expecting at most one JSON value")
    return value


def _double_quoted(match: re.Match[str]) -> str:
    inner = match.group()[1:-1]
    return f'"{_SPECIAL.sub(lambda found: _REWRITTEN.get(found[0], found[0]), inner)}"'


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise OptionError("JSON parse error, duplicate key")
    return value


def _refuse_constant(name: str) -> object:
    raise OptionError(f"JSON parse error, invalid keyword '{name}'")
