# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the export tests."""

from tests.virtio_blk.lanes import lane

__all__ = ["lane"]
