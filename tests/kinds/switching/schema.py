# SPDX-License-Identifier: Apache-2.0
"""Arguments, answer and event of `x-test-switch-lamps`."""

from __future__ import annotations

from vhostblk.schema.base import QapiStruct


class SwitchLamps(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-test-switch-lamps`."""

    on: bool


class SwitchedLamp(QapiStruct, kw_only=True, frozen=True):
    """One lamp in the answer, and the data of the event `TEST_LAMP_SWITCHED`."""

    id: str
    #: Whether it was on before.
    was_on: bool
