# SPDX-License-Identifier: Apache-2.0
"""Persistent reservation helpers side by side: `python -m benchmarks.pr`.

Both helpers get a device that answers at once (`device.c`), or after some time. `client.c` sends
commands on one connection or on many. Rounds of the two take turns, and the table has medians.
"""
