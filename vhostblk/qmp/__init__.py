# SPDX-License-Identifier: Apache-2.0
"""QMP: the wire, monitors, and the commands (`vhostblk.qmp.commands`, one module an area)."""
