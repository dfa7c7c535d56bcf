# SPDX-License-Identifier: Apache-2.0
"""The version of vhostblk."""

__version__ = "0.1.0"
