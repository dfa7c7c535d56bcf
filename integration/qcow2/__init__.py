# SPDX-License-Identifier: Apache-2.0
"""qcow2 against QEMU's own programs."""
