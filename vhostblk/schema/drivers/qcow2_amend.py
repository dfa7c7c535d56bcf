# SPDX-License-Identifier: Apache-2.0
"""Options of `x-blockdev-amend` for qcow2 images (`qapi/block-core.json`)."""

from __future__ import annotations

from vhostblk.schema.amend import BlockdevAmendOptions
from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.crypto import QCryptoBlockAmendOptions  # noqa: TC001 (read at run time)


class BlockdevAmendOptionsQcow2(BlockdevAmendOptions, tag="qcow2", kw_only=True, frozen=True):
    """A qcow2 image."""

    encrypt: QCryptoBlockAmendOptions | UnsetType = UNSET
