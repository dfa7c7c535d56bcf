# SPDX-License-Identifier: Apache-2.0
"""QMP: the wire format, monitors, and the commands (`vhostblk.qmp.commands`, a module per area)."""
