# SPDX-License-Identifier: Apache-2.0
"""A front-end without a socket: it calls the backend's methods as the server would."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tests.frontend.memory import Memory
from tests.frontend.ring import Segment
from tests.virtio_blk.support import MIB, UNSET, HandNode, Pending, attach, header
from tests.virtqueue.kinds import current_kind
from tests.virtqueue.support import described, vring_config
from vhostblk.engine.iothreads import Iothreads
from vhostblk.exports.vhost_user_blk.device import VhostUserBlkDevice
from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk
from vhostblk.virtio_blk.features import Feature

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.frontend.layout.vhost_user import MemoryRegion
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import BlockNode
    from vhostblk.virtqueue.config import RegionDescription

#: The smallest set that a modern driver acknowledges.
BASE = Feature.VERSION_1.mask
FLUSH, WCE = Feature.FLUSH.mask, Feature.CONFIG_WCE.mask


def export_options(**members: Any) -> BlockExportOptionsVhostUserBlk:
    """Make an export's options; `_` in names stands for `-`."""
    wire = {
        "type": "vhost-user-blk",
        "id": "e",
        "node-name": "disk",
        "addr": {"type": "unix", "path": "unused"},
        "writable": True,
        **{name.replace("_", "-"): value for name, value in members.items()},
    }
    return msgspec.convert(wire, BlockExportOptionsVhostUserBlk)


def make_backend(
    node: BlockNode | None = None,
    iothreads: Iothreads | None = None,
    graph: Graph | None = None,
    **members: Any,
) -> VhostUserBlkDevice:
    """Make the device of an export, with nothing connected; `graph` is the node's."""
    options = export_options(**members)
    backend = attach(
        node or HandNode(),
        writable=options.writable,
        graph=graph,
        allow_inactive=options.allow_inactive,
    )
    backend.enable_write_cache = not options.writethrough
    return VhostUserBlkDevice(options, backend, iothreads or Iothreads())


def handed_over(regions: Sequence[MemoryRegion]) -> list[RegionDescription]:
    """Duplicate the descriptors, because those given to a backend are its own."""
    return [replace(described(region), fd=os.dup(region.fd)) for region in regions]


class Frontend:
    """One front-end with its memory and queues."""

    def __init__(self, node: BlockNode, **members: Any) -> None:
        #: Most tests have a `HandNode` here.
        self.node: Any = node
        self.memory = Memory(((0, 256 * 1024), (1 << 32, 2 * MIB)))
        self.rings = [current_kind().driver(self.memory, 16) for _ in range(2)]
        self.iothreads = Iothreads()
        self.device = make_backend(node, self.iothreads, num_queues=2, **members)
        self.block_backend = self.device._backend

    async def connect(self, features: int = BASE | FLUSH | WCE) -> None:
        """Negotiate and hand over the memory."""
        self.device.set_features(features | current_kind().features)
        await self.device.set_memory(handed_over(self.memory.describe()))

    async def start(self, index: int = 0, *, enable: bool = True) -> None:
        """Start a queue."""
        ring = self.rings[index]
        self.device.set_vring_call(index, os.dup(ring.call_fd))
        config = vring_config(ring, self.memory, index)
        await self.device.start_vring(config, os.dup(ring.kick_fd))
        if enable:
            self.device.set_vring_enabled(index, True)

    def request(
        self,
        kind: int,
        sector: int = 0,
        *,
        send: bytes = b"",
        want: int = 0,
        index: int = 0,
        align: int = 16,
    ) -> Pending:
        """Make a request available and kick."""
        memory = self.memory
        head_addr, status = memory.allocate(16, region=1), memory.allocate(1, 1, region=1)
        memory.write(head_addr, header(kind, sector))
        memory.write(status, bytes([UNSET]))
        data = memory.allocate(len(send) + want + 1, align, region=1)
        memory.write(data, send)
        chain = [Segment(head_addr, 16), Segment(data, len(send)), Segment(data, want, True)]
        ring = self.rings[index]
        head = ring.add([s for s in chain if s.length] + [Segment(status, 1, True)])
        ring.kick(force=True)
        return Pending(memory, head, data, len(send) + want, status, head_addr)

    async def done(self, request: Pending) -> int:
        """Wait for a request's status."""
        await self.until(lambda: request.status != UNSET)
        return request.status

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until something holds."""
        async with asyncio.timeout(20):
            while True:
                if condition():
                    return
                await asyncio.sleep(0)

    def close(self) -> None:
        self.iothreads.close()
        for ring in self.rings:
            ring.close()
        self.memory.close()


@asynccontextmanager
async def frontend(node: BlockNode | None = None, **members: Any) -> AsyncIterator[Frontend]:
    """Run a front-end, and let it leave."""
    front = Frontend(node or HandNode(), **members)
    try:
        yield front
        if isinstance(front.node, HandNode):
            front.node.finish_all()
        await front.device.reset()
    finally:
        front.close()
