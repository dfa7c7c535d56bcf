# SPDX-License-Identifier: Apache-2.0
"""QAPI types as msgspec structs."""
