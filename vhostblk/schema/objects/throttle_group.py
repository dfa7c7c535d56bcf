# SPDX-License-Identifier: Apache-2.0
"""Options of throttle groups."""

from __future__ import annotations

from msgspec.structs import asdict

from vhostblk.schema.base import UNSET, UnsetType
from vhostblk.schema.object import ObjectOptions
from vhostblk.schema.throttle import ThrottleLimits, limits_of


class ThrottleGroupProperties(ObjectOptions, tag="throttle-group", kw_only=True, frozen=True):
    """Limits that several nodes share. The `x_` members are those of `limits`."""

    limits: ThrottleLimits | UnsetType = UNSET
    x_iops_total: int | UnsetType = UNSET
    x_iops_total_max: int | UnsetType = UNSET
    x_iops_total_max_length: int | UnsetType = UNSET
    x_iops_read: int | UnsetType = UNSET
    x_iops_read_max: int | UnsetType = UNSET
    x_iops_read_max_length: int | UnsetType = UNSET
    x_iops_write: int | UnsetType = UNSET
    x_iops_write_max: int | UnsetType = UNSET
    x_iops_write_max_length: int | UnsetType = UNSET
    x_bps_total: int | UnsetType = UNSET
    x_bps_total_max: int | UnsetType = UNSET
    x_bps_total_max_length: int | UnsetType = UNSET
    x_bps_read: int | UnsetType = UNSET
    x_bps_read_max: int | UnsetType = UNSET
    x_bps_read_max_length: int | UnsetType = UNSET
    x_bps_write: int | UnsetType = UNSET
    x_bps_write_max: int | UnsetType = UNSET
    x_bps_write_max_length: int | UnsetType = UNSET
    x_iops_size: int | UnsetType = UNSET

    def check(self) -> None:
        """Check the limits; raises OptionError."""
        self.initial_limits()

    def initial_limits(self) -> ThrottleLimits:
        """Return the complete limits of a new group; raises OptionError."""
        single = {
            name.removeprefix("x_"): value
            for name, value in asdict(self).items()
            if name.startswith("x_") and value is not UNSET
        }
        return limits_of(single, self.limits)
