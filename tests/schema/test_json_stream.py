# SPDX-License-Identifier: Apache-2.0
"""JSON from a stream: what is accepted, what is said otherwise, and the limits."""

from __future__ import annotations

import json
import math
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhostblk.schema import json_lexer
from vhostblk.schema.json_stream import MAX_NESTING, MAX_TOKEN_COUNT, JsonError, JsonStream

CALM = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def read(data: bytes, portion: int = 1 << 20) -> list[object]:
    """Return the values, errors as their messages in a tuple."""
    stream = JsonStream()
    found: list[object] = []
    for start in range(0, len(data), portion):
        stream.feed(data[start : start + portion])
        while (outcome := stream.next()) is not None:
            found.append((str(outcome),) if isinstance(outcome, JsonError) else outcome[0])
        assert not stream.has_input
    return found


def error(data: bytes) -> str:
    """Return the first thing that is wrong."""
    return next(str(found[0]) for found in read(data) if isinstance(found, tuple))


@pytest.mark.parametrize("portion", [1, 7, 1 << 20])
def test_values_need_nothing_between_them(portion: int) -> None:
    text = b"""{"a":1}{}[]['b',"c"]'d'"e"-1 0 1.5e3 true false null\r\n[[{'x':[]}]]"""
    assert read(text, portion) == [
        *[{"a": 1}, {}, [], ["b", "c"], "d", "e", -1, 0, 1500.0, True, False, None],
        [[{"x": []}]],
    ]


def test_numbers_end_with_what_follows() -> None:
    stream = JsonStream()
    stream.feed(b"12")
    assert stream.next() is None
    stream.feed(b"3 ")
    assert stream.next() == (123,)
    stream.feed(b"4")
    assert stream.next() is None
    assert stream.finish() == (4,)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"18446744073709551616", 2.0**64),
        (b"-9223372036854775809", -(2.0**63)),
        (b"1e400", math.inf),
        (b"9" * 5000, math.inf),
        (b'"\\u00e9\\ud83d\\ude00\\u0000\\/\\b\\f\\n\\r\\t\\"\\\'\\\\"', "é😀\0/\b\f\n\r\t\"'\\"),
        (b'"\xc3\xa9\xc0\x80\x7f"', "é\0\x7f"),
        (b"'\"\\''", "\"'"),
    ],
)
def test_scalars(text: bytes, value: object) -> None:
    assert read(text + b"\n") == [value]


#: What is wrong with each, as the real daemon says it.
WRONG = [
    (b"}", "JSON parse error, expecting value"),
    (b",", "JSON parse error, expecting value"),
    (b'{"a"}', "JSON parse error, missing : in object pair"),
    (b'{"a":}', "JSON parse error, expecting value"),
    (b"{1:2}", "JSON parse error, key is not a string in object"),
    (b'{"a":1 "b":2}', "JSON parse error, expected separator in dict"),
    (b"[1 2]", "JSON parse error, expected separator in list"),
    (b"[1,]", "JSON parse error, expecting value"),
    (b'{"a":1,"a":2}', "JSON parse error, duplicate key"),
    (b"[%d]", "JSON parse error, stray '%'"),
    (b"[tru]", "JSON parse error, invalid keyword 'tru'"),
    (b"[01]", "JSON parse error, stray '01'"),
    (b"[-]", "JSON parse error, stray '-]'"),
    (b"[1.]", "JSON parse error, stray '1.]'"),
    (b'["\\x"]', "JSON parse error, invalid escape sequence in string"),
    (b'["\\u12"]', 'JSON parse error, \\u12" is not a valid Unicode character'),
    (b'["\\ud800\\u0041"]', "JSON parse error, \\ud800 is not a valid Unicode character"),
    (b'["\\udc00"]', "JSON parse error, \\udc00 is not a valid Unicode character"),
    (b'["\\ufffe"]', "JSON parse error, \\ufffe is not a valid Unicode character"),
    (b'["\xc3("]', "JSON parse error, invalid UTF-8 sequence in string"),
    (b'["\xef\xbf\xbe"]', "JSON parse error, invalid UTF-8 sequence in string"),
    (b'["a\nb"]', "JSON parse error, stray '\"a\n'"),
    (b"\xff", "JSON parse error, stray '\ufffd'"),
    (b"@", "JSON parse error, stray '@'"),
    (b"{[}]", "JSON parse error, expecting value"),
    (b"[" * (MAX_NESTING + 1), "JSON nesting depth limit exceeded"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_what_is_wrong(text: bytes, said: str) -> None:
    assert error(text) == said


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_after_an_error_the_next_line_is_understood(text: bytes, said: str) -> None:
    assert read(text + b'\n\xff\n{"good": 1}')[-1] == {"good": 1}


def test_the_end_in_the_middle() -> None:
    for text, said in [(b'{"a":[1', "premature EOI"), (b'{"a', "stray '\"a'")]:
        stream = JsonStream()
        stream.feed(text)
        assert stream.next() is None
        assert str(stream.finish()).startswith(f"JSON parse error, {said}")


@pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="no qemu-storage-daemon")
def test_the_real_daemon_says_the_same() -> None:
    data = b"".join(text + b"\n\xff\n" for text, _ in WRONG)
    binary = shutil.which("qemu-storage-daemon")
    assert binary is not None
    with subprocess.Popen(
        [binary, "--chardev", "stdio,id=c", "--monitor", "c"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{'execute':'qmp_capabilities'}" + data + b"{'execute':'quit'}")
        process.stdin.flush()
        replies = [json.loads(line) for line in process.stdout]
    theirs = [reply["error"]["desc"] for reply in replies if "error" in reply]
    ours = [
        found[0] if isinstance(found, tuple) else "QMP input must be a JSON object"
        for found in read(data)
    ]
    assert ours == theirs


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert error(b"[" + b"1," * MAX_TOKEN_COUNT) == "JSON token count limit exceeded"
    monkeypatch.setattr(json_lexer, "MAX_TOKEN_SIZE", 1000)
    assert error(b'"' + b"a" * 2000) == "JSON token size limit exceeded"
    assert error(b"a" * 2000) == "JSON token size limit exceeded"
    assert read(b'["' + b"a" * 5000 + b'"]\n{}')[-1] == {}


def test_a_stray_is_cut_short() -> None:
    assert len(error(b'"' + b"a" * 100_000 + b"\n")) < 300


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii") | st.sampled_from("é€😀")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab'\"\\"), inner),
    max_leaves=10,
)


@CALM
@given(st.lists(json_values, max_size=4), st.integers(1, 9), st.booleans(), st.booleans())
def test_it_reads_what_json_writes(
    values: list[object], portion: int, indented: bool, escaped: bool
) -> None:
    text = "\n".join(
        json.dumps(value, indent=1 if indented else None, ensure_ascii=escaped) for value in values
    )
    assert read(text.encode() + b"\n", portion) == values


@CALM
@given(st.binary(max_size=60))
def test_garbage_gives_errors_and_nothing_else(data: bytes) -> None:
    found = read(data)
    assert read(data, 1) == found
    assert len(found) <= len(data)
