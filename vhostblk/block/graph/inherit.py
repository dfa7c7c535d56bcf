# SPDX-License-Identifier: Apache-2.0
"""Values of common options that the user omitted.

A top-level node gets the defaults. A node defined inside its parent inherits the parent's cache and
access options, unless its definition sets them. As in QEMU, there are two exceptions: the default
of `discard` in an inline child is unmap, as the discard option of its parent has taken effect
already; and a backing image is read-only by default. A child of an inactive node is inactive,
whatever its own options say. The exception is "file" of a top-level inactive node: it is active, as
QEMU opens it first.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from vhostblk.block.errors import BlockError
from vhostblk.schema.base import UNSET
from vhostblk.schema.blockdev import (
    CACHE_DEFAULTS,
    NODE_DEFAULTS,
    BlockdevDetectZeroesOptions,
    BlockdevDiscardOptions,
)

# Roles of children, named as the options that define them.

#: The child of a format or a filter that holds its data or its metadata.
FILE = "file"
#: The child of a format that holds only data.
DATA_FILE = "data-file"
#: The child of an image that holds the ranges not allocated in the image.
BACKING = "backing"

_HANDED_DOWN = ("read_only", "auto_read_only", "force_share")


def resolve(options: Any) -> Any:
    """Return the options of a top-level node with all common options set."""
    return _fill(options, NODE_DEFAULTS, CACHE_DEFAULTS)


def resolve_child(options: Any, role: str, parent: Any) -> Any:
    """Return the options of a child defined inside `parent`, whose options are resolved."""
    values = {name: getattr(parent, name) for name in _HANDED_DOWN}
    has_name = parent.node_name is not UNSET  # named, so it is a top-level node
    values["active"] = parent.active or (role == FILE and has_name)
    if not values["active"]:
        options = replace(options, active=False)
    values["discard"] = BlockdevDiscardOptions.UNMAP
    if role == BACKING:
        values["read_only"], values["auto_read_only"] = True, False
    cache = {name: getattr(parent.cache, name) for name in CACHE_DEFAULTS}
    return _fill(options, values, cache)


def default_of(name: str, declared: Any) -> Any:
    """Return the value of an omitted option; `declared` is the schema's default."""
    return NODE_DEFAULTS.get(name, declared)


def check_options(options: Any) -> None:
    """Raise BlockError for invalid combinations of common options, in QEMU's words."""
    if options.force_share and not options.read_only:
        raise BlockError("force-share=on can only be used with read-only images")
    if (
        options.detect_zeroes is BlockdevDetectZeroesOptions.UNMAP
        and options.discard is not BlockdevDiscardOptions.UNMAP
    ):
        raise BlockError(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to "
            "unmap"
        )


def _fill(options: Any, values: dict[str, Any], cache: dict[str, bool]) -> Any:
    """Set members that are UNSET."""
    changes = {name: value for name, value in values.items() if getattr(options, name) is UNSET}
    cache_changes = {
        name: value for name, value in cache.items() if getattr(options.cache, name) is UNSET
    }
    if cache_changes:
        changes["cache"] = replace(options.cache, **cache_changes)
    return replace(options, **changes) if changes else options
