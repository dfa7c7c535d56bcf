# SPDX-License-Identifier: Apache-2.0
"""What the process gives up, so that who takes it over gains little: see `apply.py`."""
