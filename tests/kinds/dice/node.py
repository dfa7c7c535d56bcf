# SPDX-License-Identifier: Apache-2.0
"""`test-dice`: a sector with the same value in all bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vhostblk.block.graph.checking import CheckResult, ChecksImage
from vhostblk.block.graph.filename import ProtocolDriver
from vhostblk.block.graph.in_memory import KeptInMemory
from vhostblk.block.graph.node import BlockNode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.kinds.dice.options import DiceCreateOptions
    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.block.pause import Pause


class DiceNode(BlockNode, ProtocolDriver, ChecksImage, KeptInMemory):
    """A sector with the same value in all bytes."""

    driver = "test-dice"

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        return cls(node_name, options)

    @property
    def size(self) -> int:
        return 512

    async def preadv(self, offset: int, iov: IoVec) -> None:
        iov.fill(self.options.side)

    @property
    def strong_options(self) -> dict[str, Any]:
        return {"side": self.options.side}

    @property
    def only_in_memory(self) -> str:
        return "its luck" if self.options.side == 6 else ""

    @classmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        return {"side": int(rest)}

    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        return f"{self.driver}:{self.options.side}"

    async def check_image(self, *, repair: bool) -> CheckResult:
        return CheckResult(leaks=self.options.side)


async def create(options: DiceCreateOptions, _graph: Graph, _pause: Pause) -> None:
    """Write a word to a file."""
    await asyncio.to_thread(Path(options.path).write_text, "thrown")
