# SPDX-License-Identifier: Apache-2.0
"""The block layer: nodes, edges, graph, drivers."""

#: The sector size in bytes. As in QEMU, disk sizes, and offsets and lengths of guest requests, are
#: multiples of it. A few QMP members count sectors.
SECTOR = 512
