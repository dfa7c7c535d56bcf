# SPDX-License-Identifier: Apache-2.0
"""Tests of hand-overs, in parts; `tests/frontend/test_handover.py` has whole ones."""
