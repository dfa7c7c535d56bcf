# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations of real SCSI disks, LIO's, by way of our helper and QEMU's.

The helpers, Python and the client (`pr_client.py`) run inside one guest. Both helpers get the same
commands on disks that are made anew for each: status, sense and data have to be the same. Then the
managers of a daemon (`pr_manager_client.py`) dispute about a disk, one by each helper in turn, the
other one by the kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from integration.guest.kernel import Kernel, find_kernel
from integration.guest.machine import Machine
from integration.guest.python import COMMAND, HELPER_MODULES, python_files
from integration.pr_client import KEY, OTHER_KEY, TYPES
from peers import debian
from vhostblk.schema.reservations import PrType

pytestmark = pytest.mark.usefixtures("vhostblk_only")

CLIENT = Path(__file__).with_name("pr_client.py")
MANAGER = Path(__file__).with_name("pr_manager_client.py")
#: What the daemon imports when it opens a disk with a manager.
DAEMON = (
    "asyncio",
    "vhostblk.daemon",
    "vhostblk.block.aio.threads",
    "vhostblk.block.drivers.host_device",
    "vhostblk.block.reservable",
    "vhostblk.objects.pr_manager",
    "vhostblk.schema.block_query",
    "vhostblk.schema.drivers.file",
    "vhostblk.schema.objects.pr_manager",
)
MODULES = ("scsi_mod", "sd_mod", "target_core_mod", "target_core_file", "tcm_loop")
OURS = f"{COMMAND} -S -m vhostblk.pr.helper -v"
IN_PYTHON = f"VHOSTBLK_ENGINE=off {OURS}"
QEMUS = "/qemu/ld.so --library-path /qemu /qemu/qemu-pr-helper"
#: No user of its own is needed, and no file that names it.
NOBODY = "-u 65534 -g 65534"
_QEMU = debian.TRIXIE.path / "usr/bin/qemu-pr-helper"


class Guest(Machine):
    """A guest with both helpers."""

    def kernel(self) -> Kernel:
        """Give the kernel, with what LIO needs."""
        found = find_kernel()
        return Kernel(found.image, found.modules, MODULES)

    def files(self) -> dict[str, Path]:
        """Give Python, our helper, the client and QEMU's helper."""
        modules = (*HELPER_MODULES, "encodings.idna", "array", "json", "runpy", "pathlib")
        files = {"client.py": CLIENT, "integration/pr_client.py": CLIENT, "manager.py": MANAGER}
        return {**python_files(*modules, *DAEMON), **files, **qemus_files()}

    def dispute(self, helper: str) -> list[Any]:
        """Have a daemon's managers dispute about a disk; return what came of that."""
        output = self.run(
            f"{helper} {NOBODY} -k /run/pr.sock -f /run/pr.pid > /run/log 2>&1 &\n"
            "until test -S /run/pr.sock; do usleep 20000; done\n"
            f"{COMMAND} -S /manager.py /run/pr.sock || {{ cat /run/log; exit 1; }}\n"
            "kill $(cat /run/pr.pid); wait; rm -f /run/pr.sock"
        )
        return [json.loads(line) for line in output.splitlines() if line.startswith("[")]

    def ask(self, helper: str) -> list[Any]:
        """Start a helper, and have it asked everything; return what was said."""
        output = self.run(
            f"{helper} {NOBODY} -k /run/pr.sock -f /run/pr.pid > /run/log 2>&1 &\n"
            f"{COMMAND} -S /client.py /run/pr.sock || {{ cat /run/log; exit 1; }}\n"
            "grep -E 'Cap(Prm|Eff|Bnd)|Uid' /proc/$(cat /run/pr.pid)/status\n"
            "! grep -q pr/_connection /proc/$(cat /run/pr.pid)/maps || echo compiled\n"
            "kill $(cat /run/pr.pid); wait; rm -f /run/pr.sock; cat /run/log"
        )
        lines = output.splitlines()
        assert ("compiled" in lines) == (helper == OURS), output
        said = [json.loads(line) for line in lines if line.startswith("[")]
        rest = "\n".join(line for line in lines if not line.startswith("["))
        for name, value in (("CapPrm", "20000"), ("CapEff", "20000"), ("CapBnd", "0")):
            assert re.search(rf"{name}:\s0*{value}$", rest, re.MULTILINE), rest
        assert re.search(r"Uid:(\s65534){4}", rest), rest
        return said


def qemus_files() -> dict[str, Path]:
    """Return QEMU's helper with its libraries, where there is one."""
    if not _QEMU.exists():
        return {}
    loader, *rest = debian.command(_QEMU)
    done = subprocess.run([loader, "--list", *rest], capture_output=True, text=True, check=True)
    libraries = [Path(path) for path in re.findall(r"=> (/\S+) \(0x", done.stdout)]
    files = {f"qemu/{path.name}": path for path in libraries}
    return {**files, "qemu/qemu-pr-helper": _QEMU, "qemu/ld.so": Path(loader)}


def test_reservations_of_real_disks(directory: Path) -> None:
    with Guest(directory, cpus=2) as guest:
        ours = guest.ask(OURS)
        check(ours)
        for helper in (IN_PYTHON, QEMUS) if _QEMU.exists() else (IN_PYTHON,):
            theirs = guest.ask(helper)
            assert len(ours) == len(theirs)
            for mine, other in zip(ours, theirs, strict=True):
                assert mine == other
        for helper in (OURS, QEMUS) if _QEMU.exists() else (OURS,):
            check_dispute(guest.dispute(helper))
        guest.power_off()


def check_dispute(said: list[Any]) -> None:
    """See to it that each manager's commands reached the disk, as another initiator's."""
    keys = [KEY, OTHER_KEY]
    expected: list[Any] = [["registered", [keys, None, None]]]
    for kind in PrType:
        shared = kind.value.endswith("all-registrants")  # all hold it, and no single one
        refused = "done" if shared else "reservation conflict"
        expected += [
            ["a: reserve", "done"],
            [kind.value, [keys, 0 if shared else KEY, kind.value]],
            ["b: reserve", refused],
            ["a: release", "done"],
            ["b: reserve", "done"],
            [kind.value, [keys, 0 if shared else OTHER_KEY, kind.value]],
            ["a: reserve", refused],
            ["b: release", "done"],
        ]
    kind = PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
    expected += [
        ["a: reserve", "done"],
        ["b: preempt", "done"],
        ["preempted", [[OTHER_KEY], OTHER_KEY, kind.value]],
        ["a: reserve", "reservation conflict"],
        ["b: clear", "done"],
        ["cleared", [[], None, None]],
        ["capabilities", [True, len(PrType)]],
        ["full status", [[KEY, "060000005001405000000010000000000000000000000000"]]],
        ["a: clear", "done"],
    ]
    assert said == expected


def check(said: list[Any]) -> None:
    """See to it that the disks have done what was asked: all types, conflicts, the keys."""
    assert len(said) > 200
    for kind in TYPES:
        reserved = [
            answer[0]
            for disk, operation, action, type_, _, answer in said[:-2]
            if (disk, operation, action, type_) == (0, 0x5F, 1, kind)
        ]
        assert 0 in reserved, f"type {kind} was never reserved"
    statuses = {answer[0] for *_, answer in said}
    assert statuses >= {0, 2, 0x18}
    keys = f"{KEY:016x}{OTHER_KEY:016x}"
    assert any(keys in answer[2] for *_, answer in said), "both keys were never registered"
    (_, _, read), (_, _, written) = said[-2:]
    assert read[0] == 0
    assert (written[0], written[1][4:6], written[1][24:28]) == (2, "05", "2000")
