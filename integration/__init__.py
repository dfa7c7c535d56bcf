# SPDX-License-Identifier: Apache-2.0
"""The whole way: QEMU guests boot and work on disks that a storage daemon serves.

`guest/` is the harness, `test_*.py` are the scenarios, `conftest.py` has the fixtures.
"""
