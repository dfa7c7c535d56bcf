# SPDX-License-Identifier: Apache-2.0
r"""QEMU's keyval syntax: `driver=raw,file.driver=file,file.filename=a,,b` (`util/keyval.c`).

    key-vals    = [ key-val { ',' key-val } [ ',' ] ]
    key-val     = key '=' val | help
    key         = key-fragment { '.' ( key-fragment | index ) }
    help        = 'help' | '?'

A comma in a value is doubled. Dots in a key make nested dictionaries; a dictionary whose keys are
all indices becomes a list. The last value of a key counts. If the option has an implied key, the
first key-val may be only a value, without commas. All leaves are strings, which are converted to
the types of their members later (`vhostblk.schema.convert`).
"""

from __future__ import annotations

import re

from vhostblk.schema.errors import HelpRequestedError, OptionError

#: The length of a fragment must be less than this.
MAX_FRAGMENT = 128

# A QAPI name: a letter first; downstream extensions begin with `__RFQDN_`.
_NAME = re.compile(r"(?:__[A-Za-z0-9.-]*_)?[A-Za-z][A-Za-z0-9_-]*")
_INDEX = re.compile(r"[0-9]+")

# A number that does not fit an int can't be an index.
_INDEX_MAX = 2**31 - 1

Tree = dict[str, object]


def parse(text: str, implied_key: str | None = None) -> Tree:
    """Return the tree of an option's argument: dicts and lists with strings as leaves.

    Raises OptionError, or HelpRequestedError if the text asks for help.
    """
    tree: Tree = {}
    wants_help = False
    position = 0
    while position < len(text):
        length = _span_key(text, position)
        end = position + length
        if text[end : end + 1] != "=" and text[position:end] in ("help", "?"):
            wants_help = True
            position = end + 1
        elif length and text[end : end + 1] != "=" and implied_key is not None:
            tree[implied_key] = text[position:end]
            position = end + 1
        else:
            position = _parse_pair(tree, text, position, end)
        implied_key = None
    if wants_help:
        raise HelpRequestedError(tree)
    return {key: _listify(value, key) for key, value in tree.items()}


def _span_key(text: str, start: int) -> int:
    end = start
    while end < len(text) and text[end] not in "=,":
        end += 1
    return end - start


def _parse_pair(tree: Tree, text: str, start: int, key_end: int) -> int:
    """Add `key=value` at `start` to the tree; return the position of the next pair."""
    key = text[start:key_end]
    fragments = _split_key(key)
    current = tree
    for depth, fragment in enumerate(fragments[:-1]):
        below = current.setdefault(fragment, {})
        if not isinstance(below, dict):
            raise _inconsistent(fragments[: depth + 1])
        current = below
    if text[key_end : key_end + 1] != "=":
        raise OptionError(f"Expected '=' after parameter '{key}'", option=key)
    value, after = _take_value(text, key_end + 1)
    if isinstance(current.get(fragments[-1]), dict):
        raise _inconsistent(fragments)
    current[fragments[-1]] = value
    return after


def _split_key(key: str) -> list[str]:
    fragments: list[str] = []
    position = 0
    while True:
        match = _INDEX.match(key, position) if fragments else None
        match = match or _NAME.match(key, position)
        if match is None or (match.end() < len(key) and key[match.end()] != "."):
            raise OptionError(f"Invalid parameter '{key}'", option=key)
        fragment = match.group()
        if len(fragment) >= MAX_FRAGMENT:
            kind = "Parameter" if fragment == key else "Parameter fragment"
            raise OptionError(f"{kind} '{fragment}' is too long")
        fragments.append(fragment)
        if match.end() == len(key):
            return fragments
        position = match.end() + 1


def _take_value(text: str, start: int) -> tuple[str, int]:
    """Return the value at `start`, with single commas, and the position of the next pair."""
    parts: list[str] = []
    while True:
        comma = text.find(",", start)
        if comma < 0:
            parts.append(text[start:])
            return "".join(parts), len(text)
        if text[comma + 1 : comma + 2] != ",":
            parts.append(text[start:comma])
            return "".join(parts), comma + 1
        parts.append(text[start : comma + 1])
        start = comma + 2


def _inconsistent(fragments: list[str]) -> OptionError:
    return OptionError(f"Parameters '{'.'.join(fragments)}.*' used inconsistently")


def _listify(value: object, path: str) -> object:
    """Turn dictionaries with indices as keys into lists, the innermost first."""
    if not isinstance(value, dict):
        return value
    children = {key: _listify(child, f"{path}.{key}") for key, child in value.items()}
    indices = {key: min(int(key), _INDEX_MAX) for key in children if _INDEX.fullmatch(key)}
    if not indices:
        return children
    if len(indices) < len(children):
        raise OptionError(f"Parameters '{path}.*' used inconsistently")
    elements = {indices[key]: child for key, child in children.items()}
    for index in range(min(len(children), max(elements)) + 1):
        if index not in elements:
            raise OptionError(f"Parameter '{path}.{index}' missing")
    return [elements[index] for index in range(len(elements))]
