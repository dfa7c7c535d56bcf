# SPDX-License-Identifier: Apache-2.0
"""Exports and objects over QMP; the same script on QEMU's daemon."""
