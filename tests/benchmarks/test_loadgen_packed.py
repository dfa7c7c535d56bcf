# SPDX-License-Identifier: Apache-2.0
"""The load generator with packed rings, which of the daemons here only ours has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.daemons import Disk, running, vhostblk_backend
from benchmarks.loadgen.client import FrontEnd, Geometry
from benchmarks.loadgen.protocol import ProtocolError
from benchmarks.loadgen.run import Ledger, Workload, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.daemons import Daemon

    from .conftest import Serve

SIZE = 4 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("packed")
    path = folder / "disk.img"
    path.write_bytes(bytes(SIZE))
    disk = Disk("file", (f"filename={path}",), queues=2)
    with running(vhostblk_backend(), disk, folder) as daemon:
        yield daemon


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("wait_for_calls", [True, False])
def test_every_request_is_answered_and_every_block_right(
    daemon: Daemon, event_idx: bool, indirect: bool, wait_for_calls: bool
) -> None:
    geometry = Geometry(
        queues=2, depth=8, segments=2, event_idx=event_idx, indirect=indirect, packed=True
    )
    ledger = Ledger(SIZE // 4096, seed=3)
    mixed = Workload(
        seconds=20, limit=500, write_share=0.5, threads=2, wait_for_calls=wait_for_calls
    )
    with FrontEnd(daemon.sockets[0], geometry) as front_end:
        result = run(front_end, mixed, ledger)
        assert result.requests == 1000
        assert result.odd_lengths == 0
        base = front_end.loadgen.lib.lg_base
        assert front_end.stop() == [base(queue) for queue in front_end.queues]


def test_a_daemon_without_them_is_told_apart(serve: Serve) -> None:
    disk = Disk("null-co", (f"size={SIZE}",))
    with pytest.raises(ProtocolError, match="no RING_PACKED"):
        FrontEnd(serve(disk).sockets[0], Geometry(packed=True))
