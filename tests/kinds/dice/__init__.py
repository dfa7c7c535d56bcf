# SPDX-License-Identifier: Apache-2.0
"""A driver: a disk with the same value in all bytes. It has file names and can create images."""
