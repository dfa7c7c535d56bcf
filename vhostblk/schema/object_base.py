# SPDX-License-Identifier: Apache-2.0
"""What all user-creatable objects have in common (`qapi/qom.json`)."""

from __future__ import annotations

from vhostblk.schema.base import QapiStruct


class ObjectOptionsBase(QapiStruct, tag_field="qom-type", kw_only=True, frozen=True):
    """Members common to all objects."""

    id: str
