# SPDX-License-Identifier: Apache-2.0
"""An export type: each client that connects to its socket gets the disk's first sector."""
