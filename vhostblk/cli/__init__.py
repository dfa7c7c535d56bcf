# SPDX-License-Identifier: Apache-2.0
"""Command line: that of the QEMU storage daemon, and a short form for one image."""

from __future__ import annotations

from vhostblk.cli.program import main

__all__ = ["main"]
