# SPDX-License-Identifier: Apache-2.0
"""The layouts that the front-end uses, written from the specifications alone.

Nothing here, and nothing else that the front-end consists of, imports `vhostblk`: a wrong number in
the product's layouts shows as a test that fails. `tests/frontend/test_layout.py` compares the two.
"""
