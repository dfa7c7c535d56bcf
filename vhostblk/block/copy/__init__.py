# SPDX-License-Identifier: Apache-2.0
"""Copying disks by clusters."""
