# SPDX-License-Identifier: Apache-2.0
"""Restrictions of the process, which limit what an attacker gains: see `apply.py`."""
