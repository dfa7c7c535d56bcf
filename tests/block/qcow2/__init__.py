# SPDX-License-Identifier: Apache-2.0
"""The parts of the qcow2 driver that need no file."""
