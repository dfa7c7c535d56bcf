# SPDX-License-Identifier: Apache-2.0
"""Trace points of the helper. QEMU's has none of its own."""

from __future__ import annotations

from vhostblk.trace.point import point

pr_helper_connect = point("pr_helper_connect", "pid %d")
pr_helper_command = point("pr_helper_command", "pid %d cdb %s status %d bytes %d")
pr_helper_disconnect = point("pr_helper_disconnect", "pid %d")

NAMES = (pr_helper_connect.name, pr_helper_command.name, pr_helper_disconnect.name)
