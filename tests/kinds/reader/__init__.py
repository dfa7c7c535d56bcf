# SPDX-License-Identifier: Apache-2.0
"""An export type: whoever connects to its socket gets the disk's first sector."""
