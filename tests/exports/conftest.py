# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the export tests."""

from tests.virtio_blk.lanes import lane
from tests.virtqueue.kinds import ring_kind

__all__ = ["lane", "ring_kind"]
