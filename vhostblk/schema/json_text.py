# SPDX-License-Identifier: Apache-2.0
"""Options as JSON text: one value, parsed by `vhostblk.schema.json_stream`."""

from __future__ import annotations

from vhostblk.schema.errors import OptionError
from vhostblk.schema.json_stream import JsonError, JsonStream


def parse(text: str) -> object:
    """Return the value of a JSON text; raises OptionError."""
    stream = JsonStream()
    # The parser reports text from the command line that is not UTF-8.
    stream.feed(text.encode(errors="surrogateescape"))
    first = stream.next() or stream.finish()
    if first is None:
        raise OptionError("Expecting a JSON value")
    if isinstance(first, JsonError):
        raise first
    if stream.next() is not None or stream.finish() is not None:
        raise OptionError("Expecting at most one JSON value")
    return first[0]
