# SPDX-License-Identifier: Apache-2.0
"""`python -m fuzz NAME …` runs one of the Python fuzzers."""

from fuzz.drive import main

main()
