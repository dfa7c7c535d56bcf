# SPDX-License-Identifier: Apache-2.0
"""QAPI enums shared by several schema modules (`qapi/common.json`)."""

from __future__ import annotations

from enum import Enum


class OnOffAuto(Enum):
    """`OnOffAuto`."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"
