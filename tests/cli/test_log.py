# SPDX-License-Identifier: Apache-2.0
"""The log as JSON."""

from __future__ import annotations

import io
import json
import logging
import socket
from datetime import datetime
from typing import TYPE_CHECKING

from tests.cli.process import refusal, running, wait_for_socket
from vhostblk.log import JsonFormatter
from vhostblk.ratelimit import BURST, RateLimitedLogger

if TYPE_CHECKING:
    from pathlib import Path

EXPORT = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=v.sock"


def test_what_a_peer_does_wrong_is_an_object(tmp_path: Path) -> None:
    options = ("--blockdev", "null-co,node-name=n", "--export", EXPORT)
    with running(*options, "--x-vhostblk-log=json", cwd=tmp_path) as daemon:
        wait_for_socket(daemon, "v.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "v.sock"))
            client.sendall(b"\xff" * 12)
            assert daemon.stderr is not None
            record = json.loads(daemon.stderr.readline())
    assert (record["level"], record["subject"]) == ("warning", "export 'e'")
    assert record["logger"].startswith("vhostblk.vhost_user")
    assert record["message"]
    assert datetime.fromisoformat(record["time"]).tzinfo is not None
    assert "left-out" not in record


def test_held_back_messages_and_tracebacks() -> None:
    stream, now = io.StringIO(), [0.0]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("tests.log")
    logger.addHandler(handler)
    try:
        log = RateLimitedLogger(logger, "node 'n': ", lambda: now[0])
        for number in range(BURST + 3):
            log.warning("%d %% done", number)
        now[0] += 60
        log.error("failed: %s", "x", exc_info=ValueError("why"))
        logger.warning("plain %s", "words")
    finally:
        logger.removeHandler(handler)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["message"] for record in records[:BURST]] == [
        f"{number} % done" for number in range(BURST)
    ]
    failed, plain = records[BURST:]
    assert (failed["message"], failed["left-out"], failed["level"]) == ("failed: x", 3, "error")
    assert "ValueError: why" in failed["traceback"]
    assert (plain["message"], "subject" in plain) == ("plain words", False)


def test_other_forms_are_refused(tmp_path: Path) -> None:
    said = refusal("--x-vhostblk-log", "xml", cwd=tmp_path)
    assert said == "--x-vhostblk-log xml: the form of the log is one of text, json"
