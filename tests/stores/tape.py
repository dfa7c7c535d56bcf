# SPDX-License-Identifier: Apache-2.0
"""Recording Python's stores into shared memory: a picture is taken before each element stored."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vhostblk.block.io.iovec import view_memory
from vhostblk.virtqueue import barrier, inflight, inflight_packed, packed, split
from vhostblk.virtqueue.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Tape:
    """Pictures of areas (address and length), taken before stores into them."""

    def __init__(self, areas: Sequence[tuple[int, int]]) -> None:
        self.areas = list(areas)
        self.pictures: list[bytes] = []

    def watches(self, address: int) -> bool:
        return any(0 <= address - start < length for start, length in self.areas)

    def take(self) -> None:
        self.pictures.append(picture_of(self.areas))

    def take_all(self) -> list[bytes]:
        taken, self.pictures = self.pictures, []
        return taken


def picture_of(areas: Sequence[tuple[int, int]]) -> bytes:
    """Return the content of areas, concatenated."""
    return b"".join(bytes(view_memory(*area)) for area in areas)


def restore(areas: Sequence[tuple[int, int]], picture: bytes) -> None:
    """Restore the content of areas."""
    for start, length in areas:
        view_memory(start, length)[:] = picture[:length]
        picture = picture[length:]


class _Traced(np.ndarray[Any, Any]):
    """An array whose elements are stored one by one, in the order in which numpy stores them."""

    tape: Tape | None = None

    def __setitem__(self, key: Any, value: Any) -> None:
        tape = _Traced.tape
        if isinstance(key, str):
            self[key][...] = value
            return
        address = self.__array_interface__["data"][0]
        if tape is None or not tape.watches(address):
            super().__setitem__(key, value)
            return
        assert self.ndim == 1
        places = np.arange(len(self))[key]
        values = np.broadcast_to(np.asarray(value, self.dtype), np.shape(places))
        for place, one in zip(np.ravel(places).tolist(), np.ravel(values), strict=True):
            tape.take()
            super().__setitem__(place, one)


class _Numpy:
    """Replaces the module numpy: arrays on buffers are traced."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def frombuffer(*arguments: Any) -> Any:
        return np.frombuffer(*arguments).view(_Traced)


@contextmanager
def recorded(areas: Sequence[tuple[int, int]]) -> Iterator[Tape]:
    """Record stores to areas by queues that are made inside the block."""
    tape = Tape(areas)
    view, store = GuestMemory.view, barrier.store_release_u16

    def store_traced(address: int, value: int) -> None:
        if tape.watches(address):
            tape.take()
        store(address, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Traced, "tape", tape)
        patch.setattr(GuestMemory, "view", lambda *where: view(*where).view(_Traced))
        for module in (inflight, inflight_packed):
            patch.setattr(module, "np", _Numpy())
        for ring in (split, packed):
            patch.setattr(ring, "store_release_u16", store_traced)
        yield tape
