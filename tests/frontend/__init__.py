# SPDX-License-Identifier: Apache-2.0
"""The driver side of vhost-user-blk: a front-end, guest memory, rings and a block driver.

It is written from the specifications, and imports nothing of `vhostblk` (`test_independence.py`).

Synchronous, for use from a test's own thread against a daemon in another process, or on an event
loop in another thread.
"""
