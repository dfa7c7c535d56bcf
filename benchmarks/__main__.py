# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`."""

from __future__ import annotations

import sys

from benchmarks.compare import main

if __name__ == "__main__":
    sys.exit(main())
