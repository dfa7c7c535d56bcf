# SPDX-License-Identifier: Apache-2.0
"""The export type `vhost-user-blk`."""
