# SPDX-License-Identifier: Apache-2.0
"""The log as JSON, one object on each line, for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


class JsonFormatter(logging.Formatter):
    """One object for each record.

    Members: `time` (ISO 8601, UTC, in microseconds), `level`, `logger`, `message`; optionally
    `subject` (the export, node or monitor that the message is about), `left-out` (the number of
    similar messages that were suppressed before this one) and `traceback`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line."""
        members: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": getattr(record, "bare_message", None) or record.getMessage(),
        }
        if subject := getattr(record, "subject", ""):
            members["subject"] = subject
        if left_out := getattr(record, "left_out", 0):
            members["left-out"] = left_out
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        return json.dumps(members)
