# SPDX-License-Identifier: Apache-2.0
"""The layouts that the front-end uses, written from the specifications alone.

No module of the front-end imports `vhostblk`. So a wrong number in the product's layouts makes a
test fail. `tests/frontend/test_layout.py` compares the two.
"""
