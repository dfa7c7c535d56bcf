# SPDX-License-Identifier: Apache-2.0
"""The mutations, by area."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.mutations.changes import (
    block_layer,
    devices,
    engine_io,
    files,
    filters,
    handover,
    keys,
    qcow2_changes,
    qcow2_data,
    qcow2_metadata,
    qcow2_places,
    records,
    rings,
)

if TYPE_CHECKING:
    from fuzz.mutations.mutation import Mutation

_AREAS = (
    *(engine_io, rings, records, devices, handover, files, block_layer, filters, keys),
    *(qcow2_data, qcow2_metadata, qcow2_changes, qcow2_places),
)


def all_mutations() -> list[Mutation]:
    """Return all mutations; their names differ."""
    found = [mutation for area in _AREAS for mutation in area.MUTATIONS]
    names = [mutation.name for mutation in found]
    assert len(set(names)) == len(names), "two mutations have one name"
    return found
