# SPDX-License-Identifier: Apache-2.0
"""`python -m fuzz.mutations`: see `--help`."""

import sys

from fuzz.mutations.run import main

sys.exit(main())
