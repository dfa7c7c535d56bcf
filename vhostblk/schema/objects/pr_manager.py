# SPDX-License-Identifier: Apache-2.0
"""Options of persistent reservation managers."""

from __future__ import annotations

from vhostblk.schema.object import ObjectOptions


class PrManagerHelperProperties(ObjectOptions, tag="pr-manager-helper", kw_only=True, frozen=True):
    """A manager that sends commands through a helper; `path` is the helper's socket."""

    path: str


class PrManagerKernelProperties(
    ObjectOptions, tag="x-vhostblk-pr-manager-kernel", kw_only=True, frozen=True
):
    """A manager that sends commands through the kernel's ioctls."""
