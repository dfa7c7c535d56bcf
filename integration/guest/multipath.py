# SPDX-License-Identifier: Apache-2.0
"""Multipath maps in a guest: udev, multipathd and their libraries, from a Debian root (`peers`).

They lie where Debian has them, because udev's rules and multipathd name each other by paths. The
libraries replace those of this machine's programs, which are older or the same.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from integration.guest.errors import HarnessError
from integration.guest.initramfs import CACHE
from peers.debian import LIBRARIES, LOADER, MULTIPATH

MODULES = (
    *("scsi_mod", "sd_mod", "sg", "target_core_mod", "target_core_file", "tcm_loop"),
    *("dm_mod", "dm_multipath", "dm_service_time"),
)
_PROGRAMS = (
    *("usr/bin/udevadm", "usr/lib/udev/scsi_id", "usr/sbin/dmsetup"),
    *("usr/sbin/multipath", "usr/sbin/multipathd", "usr/sbin/mpathpersist", "usr/bin/sg_persist"),
)
_RULES = (
    *("55-dm", "56-dm-mpath", "60-block", "60-multipath"),
    *("60-persistent-storage", "60-persistent-storage-dm", "95-dm-notify"),
)
_PLUGINS = ("libchecktur.so", "libprioconst.so")
#: The cloud kernel has no device handlers (SCSI_DH). Maps whose paths want one can't be made.
_CONFIGURATION = """\
defaults {
    user_friendly_names yes
    find_multipaths greedy
    polling_interval 1
    max_polling_interval 1
    reservation_key file
}
devices {
    device {
        vendor ".*"
        product ".*"
        hardware_handler "0"
        path_grouping_policy multibus
        path_checker tur
        detect_prio no
        prio const
    }
}
overrides {
    detect_prio no
    prio const
}
"""
#: Starts the daemons; the output is in /run/udevd and /run/multipathd.
START = """\
mkdir -p /run/udev /etc/multipath
/usr/lib/systemd/systemd-udevd > /run/udevd 2>&1 &
/usr/sbin/multipathd -d > /run/multipathd 2>&1 &
"""


def multipath_files() -> dict[str, Path]:
    """Return names in the guest and files of the root."""
    files = root_files(*_PROGRAMS, "usr/lib/libmpathpersist.so.0")
    root = MULTIPATH.path
    files["usr/lib/systemd/systemd-udevd"] = root / "usr/bin/udevadm"
    for name in _RULES:
        rule = f"usr/lib/udev/rules.d/{name}.rules"
        if (root / rule).exists():
            files[rule] = root / rule
    for name in _PLUGINS:
        files[f"usr/lib/multipath/{name}"] = root / "usr/lib/multipath" / name
    # What threads that are cancelled need.
    library = f"{LIBRARIES}/libgcc_s.so.1"
    files[library.removeprefix("usr/")] = root / library
    files["etc/multipath.conf"] = _written("multipath.conf", _CONFIGURATION)
    return {name: path.resolve() for name, path in files.items()}


def root_files(*names: str) -> dict[str, Path]:
    """Return programs of the root with their libraries; raises HarnessError without a root."""
    root = MULTIPATH.path
    if not MULTIPATH.is_complete():
        raise HarnessError(f"{root} is missing: run python -m peers {MULTIPATH.name}")
    files = {name: (root / name).resolve() for name in names}
    for library in _libraries(root, [root / name for name in names]):
        files[f"lib/x86_64-linux-gnu/{library.name}"] = library.resolve()
    files["lib64/ld-linux-x86-64.so.2"] = (root / LOADER).resolve()
    return files


def _libraries(root: Path, programs: list[Path]) -> set[Path]:
    places = [root / LIBRARIES, root / LIBRARIES / "systemd", root / "usr/lib"]
    loader = [str(root / LOADER), "--library-path", ":".join(map(str, places)), "--list"]
    found = set()
    for program in programs:
        done = subprocess.run([*loader, str(program)], capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            _, arrow, rest = line.partition("=> ")
            if arrow:
                found.add(Path(rest.split(" (")[0]))
    return found


def _written(name: str, content: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / name
    if not path.exists() or path.read_text() != content:
        path.write_text(content)
    return path
