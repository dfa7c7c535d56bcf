# SPDX-License-Identifier: Apache-2.0
"""JSON tokens from a stream of bytes, as QEMU's lexer finds them (`qobject/json-lexer.c`).

In addition to RFC 8259 there are strings in single quotes, and the escape for this quote. Text that
can't be a token is a *stray*. After a stray, the lexer skips everything up to the next structural
character, the end of the line, or a byte that UTF-8 never has (0xFE, 0xFF). So a client can bring
the parser back to a known state.

The automaton is a table with 256 entries for each state. Regular expressions match long runs within
one state, and most complete tokens, in one step. A token is cut off at `MAX_TOKEN_SIZE`, so memory
is bounded for any input.
"""

from __future__ import annotations

import re

#: Maximum number of bytes of one token, and of all tokens of one value.
MAX_TOKEN_SIZE = 64 << 20


# Kinds of tokens; a structural token's kind is its character.
LEFT_BRACE = ord("{")
RIGHT_BRACE = ord("}")
LEFT_BRACKET = ord("[")
RIGHT_BRACKET = ord("]")
COLON = ord(":")
COMMA = ord(",")
STRING = ord('"')
KEYWORD = ord("a")
INTEGER = ord("1")
FLOAT = ord(".")
STRAY = 0
TOO_LONG = 1

# States. An entry of the table is a state, or `_EMIT` and a kind of token, or `_EMIT_BEFORE` and a
# kind: then the character belongs to the next token.
_START, _RECOVERY, _SPACE, _KEYWORD = 0, 1, 2, 3
_DOUBLE, _DOUBLE_ESCAPE, _SINGLE, _SINGLE_ESCAPE = 4, 5, 6, 7
_SIGN, _ZERO, _DIGITS, _POINT, _FRACTION, _EXPONENT, _EXPONENT_SIGN, _EXPONENT_DIGITS = range(8, 16)
_STATES = 16
_EMIT = 0x100
_EMIT_BEFORE = 0x200
_AGAIN = 0x400

_STRUCTURE = b"{}[]:,"
_BLANKS = b" \t\r\n"
_DIGIT = b"0123456789"
_LOWER = bytes(range(ord("a"), ord("z") + 1))
_TEXT = bytes(range(0x20, 0xFE))


def _row(rest: int, *changes: tuple[bytes, int]) -> list[int]:
    row = [rest] * 256
    for characters, entry in changes:
        for character in characters:
            row[character] = entry
    return row


def _table() -> list[list[int]]:
    stray = _EMIT | STRAY
    integer = _EMIT_BEFORE | INTEGER
    fraction = _EMIT_BEFORE | FLOAT
    number = [(b"0", _ZERO), (_DIGIT[1:], _DIGITS)]
    table: list[list[int]] = [[]] * _STATES
    table[_START] = _row(
        stray,
        *[(bytes([character]), _EMIT | character) for character in _STRUCTURE],
        *[(_BLANKS, _SPACE), (_LOWER, _KEYWORD), (b'"', _DOUBLE), (b"'", _SINGLE), (b"-", _SIGN)],
        *number,
    )
    table[_RECOVERY] = _row(_AGAIN, (_TEXT, _RECOVERY), (b"\t", _RECOVERY), (_STRUCTURE, _AGAIN))
    table[_SPACE] = _row(_AGAIN, (_BLANKS, _SPACE))
    table[_KEYWORD] = _row(_EMIT_BEFORE | KEYWORD, (_LOWER, _KEYWORD))
    end = _EMIT | STRING
    table[_DOUBLE] = _row(stray, (_TEXT, _DOUBLE), (b"\\", _DOUBLE_ESCAPE), (b'"', end))
    table[_DOUBLE_ESCAPE] = _row(stray, (_TEXT, _DOUBLE))
    table[_SINGLE] = _row(stray, (_TEXT, _SINGLE), (b"\\", _SINGLE_ESCAPE), (b"'", end))
    table[_SINGLE_ESCAPE] = _row(stray, (_TEXT, _SINGLE))
    table[_SIGN] = _row(stray, *number)
    table[_ZERO] = _row(integer, (_DIGIT, stray), (b".", _POINT), (b"eE", _EXPONENT))
    table[_DIGITS] = _row(integer, (_DIGIT, _DIGITS), (b".", _POINT), (b"eE", _EXPONENT))
    table[_POINT] = _row(stray, (_DIGIT, _FRACTION))
    table[_FRACTION] = _row(fraction, (_DIGIT, _FRACTION), (b"eE", _EXPONENT))
    table[_EXPONENT] = _row(stray, (b"+-", _EXPONENT_SIGN), (_DIGIT, _EXPONENT_DIGITS))
    table[_EXPONENT_SIGN] = _row(stray, (_DIGIT, _EXPONENT_DIGITS))
    table[_EXPONENT_DIGITS] = _row(fraction, (_DIGIT, _EXPONENT_DIGITS))
    return table


_TABLE = _table()

#: Text that can be long without a change of state.
_RUNS = {
    _RECOVERY: re.compile(rb"[\t\x20-\x2b\x2d-\x39\x3b-\x5a\x5c\x5e-\x7a\x7c\x7e-\xfd]*"),
    _SPACE: re.compile(rb"[ \t\r\n]*"),
    _KEYWORD: re.compile(rb"[a-z]*"),
    _DOUBLE: re.compile(rb"[\x20\x21\x23-\x5b\x5d-\xfd]*"),
    _SINGLE: re.compile(rb"[\x20-\x26\x28-\x5b\x5d-\xfd]*"),
    _DIGITS: re.compile(rb"[0-9]*"),
    _FRACTION: re.compile(rb"[0-9]*"),
    _EXPONENT_DIGITS: re.compile(rb"[0-9]*"),
}

#: Most complete tokens, with the white space before them.
_WHOLE = re.compile(rb'[ \t\r\n]*(?:([{}\[\]:,])|("[\x20\x21\x23-\x5b\x5d-\xfd]*"))')

#: In these states no text needs to be kept.
_NO_TOKEN = (_START, _RECOVERY, _SPACE)


class Lexer:
    """A lexer that gets bytes in portions of any size, and returns tokens."""

    def __init__(self) -> None:
        self._data = b""
        self._position = 0
        self._state = _START
        #: The beginning of an incomplete token; `_data` may have the rest.
        self._begun = bytearray()

    @property
    def has_input(self) -> bool:
        """Whether there is input that is not processed yet."""
        return self._position < len(self._data)

    def feed(self, data: bytes) -> None:
        """Add input."""
        self._data = self._data[self._position :] + data
        self._position = 0

    def next(self) -> tuple[int, bytes] | None:
        """Return the next token's kind and text; None if more input is needed."""
        if self._state == _START:
            match = _WHOLE.match(self._data, self._position)
            if match is not None:
                self._position = match.end()
                text = match[match.lastindex or 0]
                return text[0], text
        while self._position < len(self._data):
            found = self._step()
            if found is not None:
                return found
        return None

    def finish(self) -> tuple[int, bytes] | None:
        """Return the token that the end of the input completes, after `next` has returned None."""
        state, text = self._state, bytes(self._begun)
        self._state = _START
        self._begun.clear()
        if state in _NO_TOKEN:
            return None
        # No state continues with a NUL, so it ends the token without being part of it.
        return _TABLE[state][0] & 0xFF, text

    def _step(self) -> tuple[int, bytes] | None:
        """Process one run and one character."""
        state = self._state
        start = self._position
        run = _RUNS.get(state)
        if run is not None:
            match = run.match(self._data, start)
            assert match is not None
            self._position = match.end()
        if self._position < len(self._data):
            entry = _TABLE[state][self._data[self._position]]
            if not entry & (_EMIT_BEFORE | _AGAIN):
                self._position += 1
        else:
            entry = state
        if state not in _NO_TOKEN or state == _START:
            self._begun += self._data[start : self._position]
        if entry < _STATES:
            self._state = entry
            return self._cut_off()
        text = bytes(self._begun)
        self._begun.clear()
        self._state = _START
        if entry == _AGAIN:
            return None
        kind = entry & 0xFF
        if kind == STRAY:
            self._state = _RECOVERY
        return kind, text

    def _cut_off(self) -> tuple[int, bytes] | None:
        """Drop a token that has become too long."""
        if self._state in _NO_TOKEN:
            self._begun.clear()
        if len(self._begun) <= MAX_TOKEN_SIZE:
            return None
        self._begun.clear()
        self._state = _RECOVERY
        return TOO_LONG, b""
