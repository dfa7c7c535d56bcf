# SPDX-License-Identifier: Apache-2.0
"""A driver: a disk whose bytes are all the same. It has file names, and can create images."""
