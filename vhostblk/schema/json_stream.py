# SPDX-License-Identifier: Apache-2.0
"""JSON values from a stream of bytes, with QEMU's limits and messages (`qobject/json-*.c`).

Each token is added to the value at once, with an explicit stack. So the work is spread over the
portions of the input, and deep nesting needs no recursion. A value ends when its braces and
brackets balance, or can't balance any more; nothing else separates values. After a syntax error the
rest of the value is skipped.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from vhostblk.schema.errors import OptionError
from vhostblk.schema.json_lexer import (
    COLON,
    COMMA,
    FLOAT,
    INTEGER,
    KEYWORD,
    LEFT_BRACE,
    LEFT_BRACKET,
    MAX_TOKEN_SIZE,
    RIGHT_BRACE,
    RIGHT_BRACKET,
    STRAY,
    STRING,
    TOO_LONG,
    Lexer,
)

#: Maximum number of tokens of one value, and maximum depth of its arrays and objects.
MAX_TOKEN_COUNT = 2 << 20
MAX_NESTING = 1 << 10

#: Maximum length of a stray token in messages.
_MAX_STRAY = 200

_KEYWORDS = {b"true": True, b"false": False, b"null": None}

_HEX = "[0-9A-Fa-f]"
_ESCAPE = re.compile(
    rf"\\(?:u([Dd][89ABab]{_HEX}{{2}})\\u([Dd][C-Fc-f]{_HEX}{{2}})"  # two UTF-16 surrogates
    rf"|u({_HEX}{{4}})|u(.{{0,4}})|(.))",
    re.DOTALL,
)
_ESCAPED = dict(zip("\"'\\/bfnrt", "\"'\\/\b\f\n\r\t", strict=True))

#: Code points that are not characters, besides surrogates.
_NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)


class JsonError(OptionError):
    """The input is not a valid JSON value."""


def _syntax_error(reason: str) -> JsonError:
    return JsonError(f"JSON parse error, {reason}")


# The next token may be: a value; a value or the end of the container that has just begun; a colon;
# a comma or the end of the container.
_VALUE, _FIRST, _COLON, _SEPARATOR = range(4)


class _NoKey(Enum):
    """Marks an object that has no key without a value."""

    NO_KEY = auto()


class JsonStream:
    """A parser that gets bytes in portions of any size, and returns values."""

    def __init__(self) -> None:
        self._lexer = Lexer()
        self._error: JsonError | None = None
        self._begin()

    @property
    def has_input(self) -> bool:
        """Whether there is input that is not processed yet."""
        return self._lexer.has_input

    def feed(self, data: bytes) -> None:
        """Add input."""
        self._lexer.feed(data)

    def next(self) -> tuple[object] | JsonError | None:
        """Return the next value, in a tuple, or its error; None if more input is needed."""
        while True:
            token = self._lexer.next()
            if token is None:
                return None
            if self._take(*token):
                return self._end()

    def finish(self) -> tuple[object] | JsonError | None:
        """Return the value that the end of the input completes, after `next` has returned None."""
        token = self._lexer.finish()
        if token is not None and self._take(*token):
            return self._end()
        if self._count == 0:
            return None
        self._error = self._error or _syntax_error("premature EOI")
        return self._end()

    def _begin(self) -> None:
        self._braces = self._brackets = self._count = self._size = 0
        self._error = None
        self._result: object = None
        #: The current container, its key without a value, and the containers around it.
        self._container: dict[str, object] | list[object] | None = None
        self._key: object = _NoKey.NO_KEY
        self._around: list[tuple[dict[str, object] | list[object] | None, object]] = []
        self._expect = _VALUE

    def _end(self) -> tuple[object] | JsonError:
        outcome = self._error or (self._result,)
        self._begin()
        return outcome

    def _take(self, kind: int, text: bytes) -> bool:
        """Process a token; return whether it ends the value."""
        if kind == LEFT_BRACE:
            self._braces += 1
        elif kind == RIGHT_BRACE:
            self._braces -= 1
        elif kind == LEFT_BRACKET:
            self._brackets += 1
        elif kind == RIGHT_BRACKET:
            self._brackets -= 1
        self._count += 1
        self._size += len(text)
        refused = self._refuse(kind, text)
        if refused is not None:
            self._error = refused
            return True
        if self._error is None:
            try:
                self._advance(kind, text)
            except JsonError as error:
                self._error = error
        if self._braces < 0 or self._brackets < 0:
            return True
        return not (self._braces or self._brackets)

    def _refuse(self, kind: int, text: bytes) -> JsonError | None:
        """Return why a token ends the value at once, independent of its context."""
        if kind == STRAY:
            told = text[:_MAX_STRAY].decode(errors="replace")
            return _syntax_error(f"stray '{told}{'...' if len(text) > _MAX_STRAY else ''}'")
        if kind == TOO_LONG or self._size >= MAX_TOKEN_SIZE:
            return JsonError("JSON token size limit exceeded")
        if self._count > MAX_TOKEN_COUNT:
            return JsonError("JSON token count limit exceeded")
        if self._braces + self._brackets > MAX_NESTING:
            return JsonError("JSON nesting depth limit exceeded")
        return None

    def _advance(self, kind: int, text: bytes) -> None:
        """Make one step in the grammar; raises JsonError."""
        expect = self._expect
        if expect == _SEPARATOR:
            if kind == COMMA:
                self._expect = _VALUE
            elif kind == self._closer():
                self._close()
            else:
                where = "dict" if isinstance(self._container, dict) else "list"
                raise _syntax_error(f"expected separator in {where}")
        elif expect == _COLON:
            if kind != COLON:
                raise _syntax_error("missing : in object pair")
            self._expect = _VALUE
        elif expect == _FIRST and kind == self._closer():
            self._close()
        elif kind == LEFT_BRACE:
            self._open({})
        elif kind == LEFT_BRACKET:
            self._open([])
        else:
            self._add(_scalar(kind, text))

    def _open(self, container: dict[str, object] | list[object]) -> None:
        self._around.append((self._container, self._key))
        self._container = container
        self._key = _NoKey.NO_KEY
        self._expect = _FIRST

    def _closer(self) -> int:
        return RIGHT_BRACE if isinstance(self._container, dict) else RIGHT_BRACKET

    def _close(self) -> None:
        value = self._container
        self._container, self._key = self._around.pop()
        self._add(value)

    def _add(self, value: object) -> None:
        """Add a complete value to its container."""
        container = self._container
        self._expect = _SEPARATOR
        if container is None:
            self._result = value
        elif isinstance(container, list):
            container.append(value)
        elif self._key is _NoKey.NO_KEY:
            if not isinstance(value, str):
                raise _syntax_error("key is not a string in object")
            self._key = value
            self._expect = _COLON
        else:
            assert isinstance(self._key, str)
            if self._key in container:
                raise _syntax_error("duplicate key")
            container[self._key] = value
            self._key = _NoKey.NO_KEY


def _scalar(kind: int, text: bytes) -> object:
    if kind == STRING:
        return _string(text)
    if kind == INTEGER:
        return _integer(text)
    if kind == FLOAT:
        return float(text)
    if kind == KEYWORD:
        if text not in _KEYWORDS:
            raise _syntax_error(f"invalid keyword '{text[:_MAX_STRAY].decode()}'")
        return _KEYWORDS[text]
    raise _syntax_error("expecting value")


def _integer(text: bytes) -> int | float:
    """Return an integer, or a float if the text does not fit 64 bits."""
    if len(text) <= 20:  # -9223372036854775808
        value = int(text)
        if -(2**63) <= value < 2**64:
            return value
    return float(text)


def _string(text: bytes) -> str:
    body = text[1:-1]
    if body.isascii():
        value = body.decode("ascii")
    else:
        try:
            # NUL in two bytes, as in "modified UTF-8".
            value = body.replace(b"\xc0\x80", b"\0").decode()
        except UnicodeDecodeError:
            raise _syntax_error("invalid UTF-8 sequence in string") from None
        if _NONCHARACTER.search(value):
            raise _syntax_error("invalid UTF-8 sequence in string")
    if "\\" not in value:
        return value
    quote = chr(text[0])
    return _ESCAPE.sub(lambda match: _unescape(match, quote), value)


def _unescape(match: re.Match[str], quote: str) -> str:
    high, low, digits, no_digits, letter = match.groups()
    if letter is not None:
        if letter not in _ESCAPED:
            raise _syntax_error("invalid escape sequence in string")
        return _ESCAPED[letter]
    if no_digits is not None:
        raise _not_a_character(no_digits + quote)
    if low is not None:
        character = chr(0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00)
    else:
        character = chr(int(digits, 16))
    if "\ud800" <= character <= "\udfff" or _NONCHARACTER.match(character):
        raise _not_a_character(high or digits)
    return character


def _not_a_character(digits: str) -> JsonError:
    return _syntax_error(f"\\u{digits[:4]} is not a valid Unicode character")
