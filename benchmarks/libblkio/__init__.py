# SPDX-License-Identifier: Apache-2.0
"""A front-end that is not ours: libblkio's virtio-blk-vhost-user driver, in a program of its own."""
