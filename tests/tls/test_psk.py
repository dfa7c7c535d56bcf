# SPDX-License-Identifier: Apache-2.0
"""Finding a client's key."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.crypto.secret_bytes import SecretBytes
from vhostblk.net.tls.psk import find_key

if TYPE_CHECKING:
    from collections.abc import Callable


def expected(content: bytes, name: bytes) -> bytes | None:
    for line in content.split(b"\n"):
        found, colon, key = line.partition(b":")
        if colon and found in (name, b"#" + name.hex().encode()):
            return key.rstrip(b" \r")
    return None


def found(content: bytes, name: bytes) -> bytes | None:
    with SecretBytes(content) as secret, secret.view as view:
        key = find_key(view, name)
        return None if key is None else bytes(key)


_LETTERS = st.sampled_from([b"a", b":", b"#", b"6", b"1", b"\n", b"\r", b" ", b"#61:", b"\na:"])


@given(st.lists(_LETTERS, max_size=12), st.lists(_LETTERS, max_size=2))
def test_first_line_with_the_name(content: list[bytes], name: list[bytes]) -> None:
    text, wanted = b"".join(content), b"".join(name)
    assert found(text, wanted) == expected(text, wanted)


@pytest.mark.parametrize("content", [b"", b"a:", b"a:12", b"b:34\na:12", b"b:34\n#61:12\r\n"])
def test_name_at_the_edges(content: bytes) -> None:
    assert found(content, b"a") == expected(content, b"a")


def test_a_name_that_nobody_has_is_soon_missed_among_many() -> None:
    """The event loop looks for it, and any client may ask."""
    content = b"".join(b"user%06d:%s\n" % (number, b"ab" * 32) for number in range(10_000))
    assert _lines_run(lambda: found(content, b"nobody")) < 1000


def _lines_run(call: Callable[[], object]) -> int:
    """Return how many lines of Python a call runs."""
    lines = 0

    def count(_frame: object, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    former = sys.gettrace()
    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(former)
    return lines
