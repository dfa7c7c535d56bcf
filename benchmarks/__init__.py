# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: vhostblk against the QEMU storage daemon, side by side."""
