# SPDX-License-Identifier: Apache-2.0
"""Options of `x-blockdev-amend` for LUKS volumes (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.amend import BlockdevAmendOptions
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.crypto import QCryptoBlockLUKSKeyslotState  # noqa: TC001 (read at run time)


class BlockdevAmendOptionsLUKS(BlockdevAmendOptions, tag="luks", kw_only=True, frozen=True):
    """A key slot of LUKS."""

    state: QCryptoBlockLUKSKeyslotState
    new_secret: str | UnsetType = UNSET
    old_secret: str | UnsetType = UNSET
    keyslot: int | UnsetType = UNSET
    iter_time: int | UnsetType = UNSET
    secret: str | UnsetType = UNSET
