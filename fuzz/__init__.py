# SPDX-License-Identifier: Apache-2.0
"""Fuzzers: of the C engine (see `build`), and of what Python parses (`python -m fuzz NAME`)."""
