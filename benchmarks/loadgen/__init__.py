# SPDX-License-Identifier: Apache-2.0
"""A vhost-user-blk front-end that makes load: handshake in Python, the hot loop in C."""
