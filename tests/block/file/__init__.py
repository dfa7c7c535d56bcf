# SPDX-License-Identifier: Apache-2.0
"""Tests of the `file` and `host_device` drivers."""
