# SPDX-License-Identifier: Apache-2.0
"""`vhostblk-pr-helper`: its parts, the program, hostile clients, and the same as QEMU's helper.

There is no SCSI device here. `fake_sg.c` is loaded into a helper, QEMU's or ours, and answers
SG_IO on a file whose content says how (`fake.py`). `client.py` is a client, written independently
of `vhostblk.pr`. Real devices (LIO) are in a guest: `integration/test_pr_helper.py`.
"""
