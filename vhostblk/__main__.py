# SPDX-License-Identifier: Apache-2.0
"""`python -m vhostblk`."""

from __future__ import annotations

import sys

from vhostblk.cli import main

if __name__ == "__main__":
    sys.exit(main())
