# SPDX-License-Identifier: Apache-2.0
"""Sockets: addresses, listening and connecting."""
