# SPDX-License-Identifier: Apache-2.0
"""Base64, AES and text, held against other implementations."""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.crypto import gnutls
from vhostblk.crypto.errors import LibraryError, SecretError
from vhostblk.crypto.formats import decode_base64, decrypt, is_text
from vhostblk.crypto.secret_bytes import SecretBytes

KEY = bytes(range(32))
IV = bytes(range(100, 116))


def content(secret: SecretBytes) -> bytes:
    with secret, secret.view as view:
        return bytes(view)


def decoded(data: bytes) -> bytes:
    return content(decode_base64(memoryview(data)))


@given(st.binary(max_size=100))
def test_base64_of_anything(data: bytes) -> None:
    assert decoded(base64.b64encode(data)) == data
    assert decoded(base64.encodebytes(data)) == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", b""),
        (b"YWJj\n", b"abc"),
        (b"Y\nW\nJj", b"abc"),
        (b"YWJ", b""),
        (b"YWJjZA", b"abc"),
        (b"YQ==YQ==", b"aa"),
        (b"====", b"\0"),
        (b"YWJj====", b"abc\0"),
    ],
)
def test_base64_that_others_refuse(text: bytes, expected: bytes) -> None:
    assert decoded(text) == expected


@given(st.lists(st.sampled_from([*b"AZaz09+/=\n"]), max_size=24).map(bytes))
def test_base64_as_glib_has_it(text: bytes) -> None:
    found = ctypes.util.find_library("glib-2.0")
    if found is None:  # QEMU, which the tests need, brings it
        pytest.fail("GLib is missing")
    glib = ctypes.CDLL(found)
    glib.g_base64_decode.restype = ctypes.POINTER(ctypes.c_char)
    glib.g_free.argtypes = [ctypes.c_void_p]
    length = ctypes.c_size_t()
    result = glib.g_base64_decode(text, ctypes.byref(length))
    expected = ctypes.string_at(result, length.value)
    glib.g_free(result)
    assert decoded(text) == expected


@pytest.mark.parametrize("text", [b"!", b"YW J", b"YWJj\0", b"YWJj\xff", b"YWJj\r\n", b"-_-_"])
def test_base64_with_other_characters(text: bytes) -> None:
    with pytest.raises(SecretError, match=r"^Base64 data contains invalid characters$"):
        decode_base64(memoryview(text))


def encrypted(data: bytes, *options: str) -> bytes:
    words = ["openssl", "enc", "-aes-256-cbc", "-K", KEY.hex(), "-iv", IV.hex(), *options]
    return subprocess.run(words, input=data, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 1000])
def test_what_openssl_has_encrypted(length: int) -> None:
    data = bytes(length)
    with SecretBytes(KEY) as key:
        plain = decrypt(memoryview(encrypted(data)), key, base64.b64encode(IV))
        assert content(plain) == data


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (bytes(15) + b"\x11", "Incorrect number of padding bytes (17) found on decrypted data"),
        (bytes(15) + b"\xff", "Incorrect number of padding bytes (255) found on decrypted data"),
        (b"", "Incorrect number of padding bytes (0) found on decrypted data"),
    ],
)
def test_padding_that_is_wrong(plain: bytes, expected: str) -> None:
    with SecretBytes(KEY) as key, pytest.raises(SecretError) as caught:
        decrypt(memoryview(encrypted(plain, "-nopad")), key, base64.b64encode(IV))
    assert str(caught.value) == expected


@given(st.binary(max_size=12))
def test_text(data: bytes) -> None:
    try:
        valid = "\0" not in data.decode()
    except UnicodeDecodeError:
        valid = False
    assert is_text(memoryview(data)) == valid


@given(st.text(max_size=8), st.integers(0, 40), st.integers(0, 255))
def test_text_with_one_byte_changed(text: str, place: int, byte: int) -> None:
    data = bytearray(text.encode(errors="surrogatepass"))
    if data:
        data[place % len(data)] = byte
    try:
        valid = "\0" not in data.decode()
    except UnicodeDecodeError:
        valid = False
    assert is_text(memoryview(bytes(data))) == valid


def test_a_machine_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gnutls, "LIBRARY", "libno-such-tls.so.30")
    with pytest.raises(LibraryError) as caught:
        gnutls.Library()
    assert str(caught.value) == (
        "TLS and encrypted secrets need GnuTLS: libno-such-tls.so.30 is not installed"
    )
