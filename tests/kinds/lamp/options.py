# SPDX-License-Identifier: Apache-2.0
"""Options of `test-lamp`."""

from __future__ import annotations

from vhostblk.schema.object import ObjectOptions


class LampOptions(ObjectOptions, tag="test-lamp", kw_only=True, frozen=True):
    """The state of the lamp."""

    on: bool = False
