# SPDX-License-Identifier: Apache-2.0
"""The Python fuzzers, for a moment."""
