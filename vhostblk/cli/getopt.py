# SPDX-License-Identifier: Apache-2.0
"""Splitting of a command line into options like getopt_long(3), with its messages.

Long options may be abbreviated. Their argument follows after '=', or is the next word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vhostblk.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence


class Syntax(NamedTuple):
    """The options of a program."""

    #: Long options, and whether they have an argument.
    options: Mapping[str, bool]
    #: The long option for each letter.
    letters: Mapping[str, str]
    #: Options that QEMU's program does not have; they don't make its abbreviations ambiguous.
    own: Collection[str] = ()
    #: The beginning of words that are not parsed.
    plain_prefixes: tuple[str, ...] = ()


class Word(NamedTuple):
    """An option with its argument; if `option` is None, a word that is not an option."""

    option: str | None
    value: str
    #: The text on the command line.
    location: str


def split(argv: Sequence[str], syntax: Syntax) -> Iterator[Word]:
    """Yield the options and other words in order; raises UsageError."""
    words = list(argv)
    only_plain = False
    while words:
        word = words.pop(0)
        plain = only_plain or not word.startswith("-") or word == "-"
        if plain or word.startswith(syntax.plain_prefixes):
            yield Word(None, word, word)
        elif word == "--":
            only_plain = True
        elif word.startswith("--"):
            yield _long_option(word, words, syntax)
        else:
            yield from _short_options(word, words, syntax)


def _long_option(word: str, words: list[str], syntax: Syntax) -> Word:
    given, equals, value = word.removeprefix("--").partition("=")
    name = _full_name(given, syntax)
    if not syntax.options[name]:
        if equals:
            raise UsageError(f"option '--{name}' doesn't allow an argument")
        return Word(name, "", word)
    if equals:
        return Word(name, value, word)
    if not words:
        raise UsageError(f"option '--{name}' requires an argument")
    value = words.pop(0)
    return Word(name, value, f"{word} {value}")


def _full_name(given: str, syntax: Syntax) -> str:
    options = syntax.options
    matches = [given] if given in options else [name for name in options if name.startswith(given)]
    if not matches:
        raise UsageError(f"unrecognized option '--{given}'")
    if len(matches) > 1:
        matches = [name for name in matches if name not in syntax.own] or matches
    if len(matches) > 1:
        possible = " ".join(f"'--{name}'" for name in matches)
        raise UsageError(f"option '--{given}' is ambiguous; possibilities: {possible}")
    return matches[0]


def _short_options(word: str, words: list[str], syntax: Syntax) -> Iterator[Word]:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        name = syntax.letters.get(letter)
        if name is None:
            raise UsageError(f"invalid option -- '{letter}'")
        value = ""
        if syntax.options[name]:
            if not letters and not words:
                raise UsageError(f"option requires an argument -- '{letter}'")
            value, letters = letters or words.pop(0), ""
        yield Word(name, value, f"-{letter} {value}".rstrip())
