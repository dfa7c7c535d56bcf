# SPDX-License-Identifier: Apache-2.0
"""Character devices: byte streams to and from monitors and other users."""
