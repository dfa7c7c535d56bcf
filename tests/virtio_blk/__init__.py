# SPDX-License-Identifier: Apache-2.0
"""The virtio-blk device model, from chains to completions."""
