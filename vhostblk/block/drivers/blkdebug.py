# SPDX-License-Identifier: Apache-2.0
"""`blkdebug`: injects errors according to rules, and restricts the limits of its child.

`blkdebug_rules` describes the rules. Events come from the driver whose primary child this node is
(`BlockNode.debug_event`), and from the edge, for this node's own writes.
"""

# ruff: noqa: D102 -- the methods are described by the contract, `BlockNode`.

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec.structs import replace

from vhostblk.block.drivers.blkdebug_config import read_config
from vhostblk.block.drivers.blkdebug_rules import Rule, Rules
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.filename import ProtocolDriver, described
from vhostblk.block.graph.filter import FilterNode
from vhostblk.block.graph.permissions import Perm
from vhostblk.block.io.flags import WriteFlags
from vhostblk.errors import os_error
from vhostblk.schema.base import UNSET
from vhostblk.schema.drivers.blkdebug import BlkdebugEvent, BlkdebugIOType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vhostblk.block.graph.graph import Graph
    from vhostblk.block.graph.node import Extent
    from vhostblk.block.io.iovec import IoVec
    from vhostblk.schema.block_query import BlockPermission

_INT_MAX = (1 << 31) - 1
_LIMITS = ("max_transfer", "opt_write_zero", "max_write_zero", "opt_discard", "max_discard")


class BlkdebugNode(FilterNode, ProtocolDriver):
    """A filter that injects errors."""

    driver = "blkdebug"
    primary_role = "image"
    exchangeable_roles = frozenset()

    def __init__(self, node_name: str, options: Any) -> None:
        super().__init__(node_name, options)
        given = [] if options.config is UNSET else read_config(options.config)
        self._rules = Rules([*given, *options.inject_error, *options.set_state])
        self._taken = _permissions(options.take_child_perms)
        self._unshared = _permissions(options.unshare_child_perms)
        self.take_debug_event = self._rules.take_event

    @classmethod
    async def open(cls, node_name: str, options: Any, graph: Graph) -> Self:
        node = await super().open(node_name, options, graph)
        node.check_children()
        node._rules.take_event(BlkdebugEvent.NONE.value)
        return node

    def check_children(self) -> None:
        _check_limits(self.options, self._file.node.limits.request_alignment)

    def refresh_limits(self) -> None:
        super().refresh_limits()
        options = self.options
        self.limits = replace(
            self.limits,
            request_alignment=options.align or 1,
            max_transfer=options.max_transfer,
            write_zeroes_alignment=options.opt_write_zero,
            max_write_zeroes=options.max_write_zero,
            discard_alignment=options.opt_discard,
            max_discard=options.max_discard,
        )
        passed = WriteFlags.FUA | WriteFlags.MAY_UNMAP | WriteFlags.NO_FALLBACK
        self.native_flags = passed & self._file.node.native_flags

    def child_permissions(self, role: str, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        return perm | self._taken, shared & ~self._unshared

    @property
    def allocated_size(self) -> int | None:
        return None

    @property
    def strong_options(self) -> dict[str, Any]:
        options = self.options
        given: dict[str, Any] = {} if options.config is UNSET else {"config": options.config}
        for name in ("align", *_LIMITS):
            if value := getattr(options, name):
                given[name.replace("_", "-")] = value
        for name, rules in (
            ("inject-error", options.inject_error),
            ("set-state", options.set_state),
        ):
            for index, rule in enumerate(rules):
                given.update(_flat(f"{name}.{index}", rule))
        return given

    def exact_name(self, below: Mapping[str, str | None]) -> str | None:
        image = below[self.primary_role]
        if image is None or self.strong_options.keys() - {"config"}:
            return None
        config = "" if self.options.config is UNSET else self.options.config
        return f"blkdebug:{config}:{image}"

    @classmethod
    def options_of(cls, rest: str, *, prefixed: bool) -> dict[str, Any]:
        config, colon, image = rest.partition(":") if prefixed else ("", ":", rest)
        if not colon:
            raise BlockError("blkdebug requires both config file and image path")
        options: dict[str, Any] = {cls.primary_role: described(image)}
        return {**options, "config": config} if config else options

    async def _check(self, kind: BlkdebugIOType, offset: int = 0, length: int = 0) -> None:
        """Raise the error of a matching rule."""
        rule = self._rules.error_for(kind, offset, length)
        if rule is None:
            return
        if rule.delay_ns > 0:
            await asyncio.sleep(rule.delay_ns / 1e9)
        if not rule.immediately:
            await asyncio.sleep(0)
        if rule.errno:
            raise os_error(abs(rule.errno))

    async def preadv(self, offset: int, iov: IoVec) -> None:
        await self._check(BlkdebugIOType.READ, offset, iov.nbytes)
        await self._file.preadv(offset, iov)

    async def pwritev(self, offset: int, iov: IoVec, flags: WriteFlags = WriteFlags.NONE) -> None:
        await self._check(BlkdebugIOType.WRITE, offset, iov.nbytes)
        await self._file.pwritev(offset, iov, flags)

    async def pwrite_zeroes(
        self, offset: int, length: int, flags: WriteFlags = WriteFlags.NONE
    ) -> None:
        limits = self.limits
        if length < max(limits.request_alignment, limits.write_zeroes_alignment):
            raise os_error(errno.ENOTSUP)  # makes the edge use its fallback
        await self._check(BlkdebugIOType.WRITE_ZEROES, offset, length)
        await self._file.pwrite_zeroes(offset, length, flags)

    async def pdiscard(self, offset: int, length: int) -> None:
        await self._check(BlkdebugIOType.DISCARD, offset, length)
        await self._file.pdiscard(offset, length)

    async def flush(self) -> None:
        await self._check(BlkdebugIOType.FLUSH)
        await self._file.flush()

    async def block_status(self, offset: int, length: int) -> Extent:
        await self._check(BlkdebugIOType.BLOCK_STATUS, offset, length)
        return await super().block_status(offset, length)


def _flat(prefix: str, rule: Rule) -> dict[str, Any]:
    """Return the members of a rule that aren't defaults, with flattened names as in QEMU."""
    values = msgspec.to_builtins(rule)
    return {
        f"{prefix}.{info.encode_name}": values[info.encode_name]
        for info in msgspec.structs.fields(rule)
        if info.required or getattr(rule, info.name) != info.default
    }


def _permissions(names: Iterable[BlockPermission]) -> Perm:
    perm = Perm.NONE
    for name in names:
        perm |= Perm[name.name]
    return perm


def _check_limits(options: Any, alignment_below: int) -> None:
    """Raise BlockError for conflicting limits, in QEMU's words."""
    align = options.align
    for name in ("align", *_LIMITS):
        if (value := getattr(options, name)) < 0:
            wire_name = name.replace("_", "-")
            raise BlockError(f"Value '{value}' is out of range for parameter '{wire_name}'")
    if align and (align >= _INT_MAX or align & (align - 1)):
        raise BlockError(f"Cannot meet constraints with align {align}")
    unit = max(align, alignment_below)
    for name in _LIMITS:
        value = getattr(options, name)
        wire_name = name.replace("_", "-")
        whole = unit
        if name.startswith("max_") and name != "max_transfer":
            whole = max(getattr(options, name.replace("max_", "opt_")), unit)
        if value and (value >= _INT_MAX or value % whole):
            raise BlockError(f"Cannot meet constraints with {wire_name} {value}")
