# SPDX-License-Identifier: Apache-2.0
"""Finding drivers; the null drivers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.block.support import RW, fails_with, options, read_bytes, run, write_bytes
from vhostblk.block import registry
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph


@pytest.mark.parametrize("name", ["file", "host_device", "null-aio", "null-co", "raw"])
def test_built_in_drivers_carry_their_name(name: str) -> None:
    assert registry.driver_class(name).driver == name


@pytest.mark.parametrize("driver", ["null-co", "null-aio"])
@pytest.mark.parametrize("latency_ns", [0, 1000])
def test_null_reads_zeroes_if_asked_to(driver: str, latency_ns: int) -> None:
    async def main() -> None:
        for read_zeroes in (False, True):
            graph = Graph()
            node = await graph.add(
                options(
                    driver=driver,
                    node_name="n",
                    size=8192,
                    latency_ns=latency_ns,
                    read_zeroes=read_zeroes,
                )
            )
            backend = BlockBackend("test", RW)
            backend.attach(graph, node)
            await write_bytes(backend, 0, b"x" * 512)
            await backend.pwrite_zeroes(0, 512)
            await backend.flush()
            expected = bytes(512) if read_zeroes else b"\xee" * 512
            assert await read_bytes(backend, 7680, 512) == expected
            with fails_with(5):
                await read_bytes(backend, 7681, 512)
            await backend.detach()
            await graph.close()

    run(main)


def test_start_up_does_not_load_numpy() -> None:
    modules = [
        "graph.graph",
        "graph.backend",
        "drivers.file",
        "drivers.raw",
        "aio.uring",
        "aio.threads",
    ]
    program = "".join(f"import vhostblk.block.{name}\n" for name in modules)
    program += "import sys\nassert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
