# SPDX-License-Identifier: Apache-2.0
"""Block drivers, one module each."""
