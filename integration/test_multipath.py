# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations of a multipath map, with libmpathpersist and multipathd of Debian.

Two ports of LIO export one backing store, so that the guest sees two paths. Our helper registers
and reserves through the library. A path that goes loses its registration; multipathd registers it
when it is back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from integration.guest.kernel import Kernel, find_kernel
from integration.guest.machine import Machine
from integration.guest.multipath import MODULES, START, multipath_files
from integration.guest.python import COMMAND, HELPER_MODULES, python_files
from integration.pr_client import KEY
from peers.debian import MULTIPATH

pytestmark = pytest.mark.usefixtures("vhostblk_only")

CLIENTS = {
    "integration/pr_client.py": Path(__file__).with_name("pr_client.py"),
    "multipath_client.py": Path(__file__).with_name("multipath_client.py"),
}
HELPER = f"{COMMAND} -S -m vhostblk.pr.helper -v -k /run/pr.sock -f /run/pr.pid"


class Guest(Machine):
    """A guest with multipathd and our helper."""

    def kernel(self) -> Kernel:
        """Give the kernel, with LIO and multipath maps."""
        found = find_kernel()
        return Kernel(found.image, found.modules, MODULES)

    def files(self) -> dict[str, Path]:
        """Give Python, our helper, the client and Debian's programs."""
        modules = (*HELPER_MODULES, "encodings.idna", "array", "json", "runpy", "pathlib")
        return {**python_files(*modules), **CLIENTS, **multipath_files()}


def test_a_map_of_two_paths(directory: Path) -> None:
    if not MULTIPATH.is_complete():
        pytest.skip(f"{MULTIPATH.path} is missing (python -m peers {MULTIPATH.name})")
    with Guest(directory, cpus=2, memory=512) as guest:
        output = guest.run(
            f"{START}\n{HELPER} > /run/log 2>&1 &\n"
            f"{COMMAND} -S /multipath_client.py /run/pr.sock || {{\n"
            "head -c 4000 /run/log /run/multipathd /run/udevd; exit 1; }\n"
            "grep -E 'Cap(Prm|Eff|Bnd)|Uid' /proc/$(cat /run/pr.pid)/status\n"
        )
        guest.power_off()
    said: list[Any] = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    assert said == [
        ["at first", [[], None]],
        ["registered", 0],
        ["keys by each path", [[KEY, KEY], [KEY, KEY]]],
        ["reserved", 0],
        # All registrants hold it; SPC-4 has no key of a single one then.
        ["reservation by each path", [[0, 7], [0, 7]]],
        ["reserved otherwise", 0x18],
        ["unknown action", [2, "700005000000000a00000000240000000000"]],
        ["keys of one path", [KEY]],
        ["reservation", [0, 7]],
        ["released", 0],
        ["no reservation", None],
        ["cleared", 0],
        ["no keys", [[]]],
    ], output
