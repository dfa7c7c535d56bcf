# SPDX-License-Identifier: Apache-2.0
"""What holds for all unit tests: a loaded machine is slow, and that is not a failure."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("vhostblk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vhostblk")
