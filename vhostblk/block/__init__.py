# SPDX-License-Identifier: Apache-2.0
"""The block layer: nodes, edges, graph, drivers."""

#: Bytes of a sector. The sizes of all disks are multiples of it, as in QEMU; so are the offsets and
#: lengths of guests' requests. QMP counts in sectors in a few places.
SECTOR = 512
