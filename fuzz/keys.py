# SPDX-License-Identifier: Apache-2.0
"""Fuzzer of what secrets and authorization are read from: `python -m fuzz keys`.

The first byte chooses what the others are: Base64, text, an encrypted secret, a file of keys, a
list of rules, a pattern and a name, an option with a secret.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from contextlib import suppress

from vhostblk.cli.arguments import parse
from vhostblk.cli.errors import UsageError
from vhostblk.crypto.errors import SecretError
from vhostblk.crypto.formats import decode_base64, decrypt, is_text
from vhostblk.crypto.secret_bytes import SecretBytes
from vhostblk.net.tls.psk import decode_hex, find_key
from vhostblk.objects.authz_list_file import load
from vhostblk.objects.authz_rules import allows, glob_matches
from vhostblk.schema.errors import OptionError

_KEY = bytes(range(32))
_file = os.memfd_create("rules", os.MFD_CLOEXEC)


def one_input(data: bytes) -> None:
    """Run one input."""
    kind, rest = data[:1], data[1:]
    if kind:
        _KINDS[kind[0] % len(_KINDS)](rest)


def _base64(data: bytes) -> None:
    try:
        with decode_base64(memoryview(data)) as secret, secret.view as view:
            found = bytes(view)
    except SecretError:
        assert re.search(rb"[^A-Za-z0-9+/=\n]", data)
        return
    text = data.replace(b"\n", b"")
    assert len(found) <= len(text) // 4 * 3
    with suppress(binascii.Error):
        if b"=" not in text.rstrip(b"="):
            assert found == base64.b64decode(text, validate=True)


def _text(data: bytes) -> None:
    try:
        valid = "\0" not in data.decode()
    except UnicodeDecodeError:
        valid = False
    assert is_text(memoryview(data)) == valid


def _encrypted(data: bytes) -> None:
    iv, rest = data[:24], data[24:]
    with SecretBytes(_KEY) as key, suppress(SecretError):
        with decrypt(memoryview(rest), key, iv) as secret:
            assert len(secret) <= len(rest)


def _keys(data: bytes) -> None:
    name, _, content = data.partition(b"\n")
    with SecretBytes(content) as secret, secret.view as view:
        found = find_key(view, name)
        expected = None
        for line in content.split(b"\n"):
            before, colon, after = line.partition(b":")
            if colon and before in (name, b"#" + name.hex().encode()):
                expected = after
                break
        assert (found is None) == (expected is None)
        if found is not None:
            assert expected is not None
            with suppress(ValueError):
                wanted = bytes.fromhex(expected.rstrip(b" \r").decode("ascii"))
                decoded = decode_hex(found)
                if decoded is not None:
                    with decoded, decoded.view as key:
                        assert bytes(key) == wanted


def _rules(data: bytes) -> None:
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    with suppress(OptionError):
        rules = load(f"/proc/self/fd/{_file}")
        for name in ("", "CN=alice", data[:20].decode(errors="replace")):
            assert allows(rules, name) in (True, False)


def _pattern(data: bytes) -> None:
    pattern, _, name = data.decode("utf-8", "surrogateescape").partition("\n")
    if pattern.count("*") <= 4 and len(name) < 100:  # the reference takes long
        parts = ({"*": ".*", "?": "."}.get(each, re.escape(each)) for each in pattern)
        expected = bool(re.fullmatch("".join(parts), name, re.DOTALL))
        assert glob_matches(pattern, name) == expected
    else:
        glob_matches(pattern, name)


def _option(data: bytes) -> None:
    """What is shown of an option has no secret in it."""
    secret = "hunter2hunter2"
    text = data.decode("utf-8", "surrogateescape").replace("S", secret)
    if "\0" in text:
        return
    named = re.search(r"(^|,)(id|file|keyid|iv|format|qom-type|serial)=[^,]*hunter", text)
    with suppress(UsageError):
        for step in parse(["--object", text]).steps:
            if "secret" in text and named is None:
                assert secret not in step.location


_KINDS = (_base64, _text, _encrypted, _keys, _rules, _pattern, _option)


def seeds() -> dict[str, bytes]:
    """Return inputs to begin with."""
    from tests.objects.test_authorization import ALICE

    return {
        "base64": b"\x00" + base64.encodebytes(bytes(range(60))),
        "text": b"\x01" + "a passphrase, größer ☃ 𝄞".encode(),
        "encrypted": b"\x02" + base64.b64encode(bytes(16)) + bytes(64),
        "keys": b"\x03bob\nqemu:6f4b\nbob:00ff \r\n#616c696365:0102\n\n",
        "rules": b"\x04" + ALICE.encode(),
        "glob": b'\x04{"policy": "deny", "rules": [{"match": "CN=*", "format": "glob", '
        b'"policy": "allow"}]}',
        "pattern": b"\x05CN=*,O=?x\nCN=alice,O=ax",
        "option": b"\x06secret,id=s,data=S,format=raw",
        "json-option": b'\x06{"qom-type": "secret", "id": "s", "data": "S"}',
    }
