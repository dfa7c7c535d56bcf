# SPDX-License-Identifier: Apache-2.0
"""QEMU itself asks our helper: `sg_persist` in a guest of a guest's QEMU (`make soak`).

The inner guest has a `scsi-block` disk of LIO, with `pr-manager-helper`. Both guests are emulated,
one inside the other, which takes minutes: the test runs with `--nested`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from integration.guest.initramfs import find_program, initramfs, shared_libraries
from integration.guest.kernel import Kernel, find_kernel
from integration.guest.machine import QEMU, Machine
from integration.guest.multipath import root_files
from integration.guest.python import COMMAND, HELPER_MODULES, python_files
from peers.debian import MULTIPATH

pytestmark = pytest.mark.usefixtures("vhostblk_only")

HERE = Path(__file__).parent
OUTER_MODULES = ("scsi_mod", "sd_mod", "sg", "target_core_mod", "target_core_file", "tcm_loop")
INNER_MODULES = ("virtio_pci", "virtio_scsi", "sd_mod", "sg")
FIRMWARE = ("bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin")
#: Where Debian has QEMU's emulation of processors (a module since 7.0).
TCG = Path("/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so")
HELPER = f"{COMMAND} -S -m vhostblk.pr.helper -v -u 65534 -g 65534 -k /run/pr.sock -f /run/pr.pid"
INNER = (
    f"/qemu/{QEMU} -L /qemu -accel tcg -cpu qemu64 -machine pc -m 192M -nodefaults "
    "-no-user-config -display none -kernel /inner/kernel -initrd /inner/initramfs "
    "-append 'console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check' -no-reboot "
    "-serial file:/run/console -object pr-manager-helper,id=pr,path=/run/pr.sock "
    "-blockdev host_device,node-name=disk,filename=DISK,pr-manager=pr "
    "-device virtio-scsi-pci -device scsi-block,drive=disk"
)
#: Seconds for two guests, one inside the other, on a machine that does other things as well.
TIMEOUT = 3000.0
KEY, OTHER_KEY = "0x1122334455667788", "0x99aabbccddeeff00"


class Guest(Machine):
    """The outer guest: LIO, our helper, QEMU, and what the inner one boots."""

    def kernel(self) -> Kernel:
        """Give the kernel, with LIO."""
        found = find_kernel()
        return Kernel(found.image, found.modules, OUTER_MODULES)

    def files(self) -> dict[str, Path]:
        """Give Python, our helper, QEMU, kernel and files of the inner guest."""
        found = find_kernel()
        inner = Kernel(found.image, found.modules, INNER_MODULES)
        init = {"init": HERE / "nested_init.sh", **root_files("usr/bin/sg_persist")}
        qemu = find_program(QEMU)
        firmware = {f"qemu/{name}": _firmware(name) for name in FIRMWARE}
        modules = (*HELPER_MODULES, "encodings.idna", "array", "json", "runpy", "pathlib")
        return {
            **python_files(*modules, "subprocess"),
            **shared_libraries(qemu),
            **firmware,
            **({f"qemu/{TCG.name}": TCG} if TCG.exists() else {}),
            f"qemu/{QEMU}": qemu,
            "integration/pr_client.py": HERE / "pr_client.py",
            "nested_client.py": HERE / "nested_client.py",
            "inner/kernel": found.image,
            "inner/initramfs": initramfs(inner, (), init),
        }


def _firmware(name: str) -> Path:
    folders = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))
    return next(folder / name for folder in folders if (folder / name).exists())


@pytest.mark.timeout(TIMEOUT + 600)
def test_sg_persist_in_a_guest_of_a_guest(directory: Path, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--nested"):
        pytest.skip("takes minutes (--nested)")
    if not MULTIPATH.is_complete():
        pytest.skip(f"{MULTIPATH.path} is missing (python -m peers {MULTIPATH.name})")
    with Guest(directory, cpus=2, memory=1024) as guest:
        output = guest.run(
            f"{HELPER} > /run/log 2>&1 &\n"
            f"QEMU_MODULE_DIR=/qemu {COMMAND} -S /nested_client.py /run/pr.sock {INNER} "
            "> /run/qemu.log 2>&1 || true\n"
            "cat /run/log /run/qemu.log /run/console",
            timeout=TIMEOUT,
        )
        guest.power_off()
    check(output)


def check(output: str) -> None:
    """See to it that each step went as it should, and that sg_persist has seen it."""
    assert "the end" in output, output
    parts = re.split(r"step (\S+) (\d+)\r?\n", output)[1:]
    statuses = dict(zip(parts[::3], map(int, parts[1::3]), strict=True))
    said = dict(zip(parts[::3], parts[2::3], strict=True))
    conflicts = {name for name, status in statuses.items() if status == 24}
    assert conflicts == {"not-registered", "conflict"}, output
    assert {status for name, status in statuses.items() if name not in conflicts} == {0}, output
    assert OTHER_KEY in said["keys"]
    assert KEY not in said["keys"]
    assert {KEY, OTHER_KEY} <= set(re.findall(r"0x[0-9a-f]{16}", said["keys-of-both"]))
    assert OTHER_KEY in said["reservation"]
    assert KEY in said["preempted"]
    for kind, title in (
        (1, "Write Exclusive"),
        (3, "Exclusive Access"),
        (5, "Write Exclusive, registrants only"),
        (6, "Exclusive Access, registrants only"),
        (7, "Write Exclusive, all registrants"),
        (8, "Exclusive Access, all registrants"),
    ):
        assert f"type: {title}" in said[f"reserved-{kind}"], output
    assert KEY in said["full-status"]
    assert OTHER_KEY not in said["full-status"]
    assert "NO registered reservation keys" in said["no-keys"]
