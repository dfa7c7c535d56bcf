# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations: the protocol of helpers, and their clients in the daemon."""
