# SPDX-License-Identifier: Apache-2.0
"""libblkio as the front-end: its virtio-blk-vhost-user driver, in a program of its own."""
