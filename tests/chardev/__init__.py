# SPDX-License-Identifier: Apache-2.0
"""Character devices."""
