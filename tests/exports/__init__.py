# SPDX-License-Identifier: Apache-2.0
"""Exports, driven through the vhost-user backend contract."""
