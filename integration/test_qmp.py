# SPDX-License-Identifier: Apache-2.0
"""Everything that QMP can do, while a guest writes, reads back and compares without a pause."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from qemu.qmp import ExecuteError

from integration.guest import image
from integration.guest.machine import Machine, VhostUserDisk
from integration.guest.monitor import Monitor
from integration.guest.server import Export, Program, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 32 * image.MIB

#: Writes somewhere, reads it back past all caches, compares; round after round until told to stop.
WORK = """
cat > /run/work.sh <<'END'
round=0
while [ ! -e /run/stop ]; do
    round=$((round + 1))
    yes "round $round " | head -c 65536 > /run/written
    place=$((round % 256))
    dd if=/run/written of=/dev/vda bs=64k seek=$place conv=notrunc,fsync || break
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/vda of=/run/read bs=64k skip=$place count=1 || break
    [ "$(sha256sum < /run/written)" = "$(sha256sum < /run/read)" ] || break
    echo $round > /run/round.new && mv /run/round.new /run/round
done
[ -e /run/stop ] && touch /run/good
touch /run/over
END
echo 0 > /run/round
sh /run/work.sh > /run/work.log 2>&1 &
"""

ONE_MORE_ROUND = """
round=$(cat /run/round)
for attempt in $(seq 400); do
    [ -e /run/over ] && break
    [ $(cat /run/round) -gt $((round + 1)) ] && exit 0
    usleep 50000
done
cat /run/work.log
exit 1
"""

END_WORK = """
touch /run/stop
for attempt in $(seq 400); do
    [ -e /run/over ] && break
    usleep 50000
done
[ -e /run/good ] || { cat /run/work.log; exit 1; }
"""


def wait_for(condition: str) -> str:
    """Make a script that waits for a condition in the guest."""
    return f"for i in $(seq 400); do {condition} && exit 0; usleep 50000; done; exit 1"


def wait_for_end(server: Server) -> None:
    """Wait until the daemon has ended by itself."""
    deadline = time.monotonic() + 20
    while server.alive():
        assert time.monotonic() < deadline, "the daemon goes on"
        time.sleep(0.01)


@contextmanager
def serving(program: Program, export: Export, directory: Path) -> Iterator[tuple[Server, Monitor]]:
    """Run a daemon with an export at `directory`/v.sock and a monitor."""
    near, far = socket.socketpair()
    arguments = export.arguments(f"addr.type=unix,addr.path={directory}/v.sock")
    arguments += ["--chardev", f"socket,id=qmp,fd={far.fileno()}", "--monitor", "chardev=qmp"]
    server = Server(program, arguments, directory, pass_fds=(far.fileno(),))
    with server:
        far.close()
        monitor = Monitor(near)
        try:
            yield server, monitor
        finally:
            monitor.close()


class Script:
    """QMP commands, and the guest asked for a round of work after each."""

    def __init__(self, monitor: Monitor, guest: Machine) -> None:
        self._monitor = monitor
        self._guest = guest
        self.known = {info["name"] for info in monitor.execute("query-commands")}
        self.used: set[str] = set()

    def run(self, command: str, **arguments: Any) -> Any:
        """Run a command that succeeds."""
        wire = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.used.add(command)
        answer = self._monitor.execute(command, wire)
        self._guest.run(ONE_MORE_ROUND, f"a round after {command}")
        return answer

    def refuse(self, command: str, text: str, **arguments: Any) -> None:
        """Run a command that fails."""
        with pytest.raises(ExecuteError, match=text):
            self.run(command, **arguments)

    def event(self, name: str, **data: object) -> None:
        """Wait for an event."""
        self._monitor.wait_event(name, **data)


def test_every_command_while_the_guest_works(program: Program, directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    attached = VhostUserDisk(directory / "v.sock")
    with serving(program, Export(disk), directory) as (server, monitor):
        with Machine(directory, attached) as guest:
            guest.run(WORK, "start work")
            script = Script(monitor, guest)
            ask(script)
            change_objects(script)
            change_nodes(script, directory)
            change_the_disk(script, guest)
            change_chardevs(script)
            add_and_remove_exports(script, guest, directory)
            guest.run(END_WORK, "end work")
            guest.power_off()
        monitor.execute("quit")
        script.used.add("quit")
        wait_for_end(server)
    expected = COMMANDS & script.known if program is Program.QEMU else COMMANDS
    assert script.used >= expected, expected - script.used


#: The commands of this control plane. QEMU's daemon 7.2 lacks some.
COMMANDS = {
    *("query-version", "query-commands", "quit"),
    *("query-block", "query-blockstats", "query-named-block-nodes", "x-debug-query-block-graph"),
    *("blockdev-add", "blockdev-del", "blockdev-reopen", "blockdev-set-active"),
    *("x-blockdev-change", "block_resize", "block-set-write-threshold"),
    *("block-export-add", "block-export-del", "query-block-exports"),
    *("object-add", "object-del"),
    *("qom-list", "qom-get", "qom-set", "qom-list-types", "qom-list-properties"),
    *("chardev-add", "chardev-remove", "chardev-change", "chardev-send-break"),
    *("query-chardev", "query-chardev-backends", "ringbuf-read", "ringbuf-write"),
    *("nbd-server-start", "nbd-server-stop", "nbd-server-add", "nbd-server-remove"),
}


def ask(script: Script) -> None:
    """Run what only asks."""
    assert script.run("query-version")["qemu"]["major"] >= 0
    script.run("query-commands")
    nodes = script.run("query-named-block-nodes", flat=True)
    assert {node["node-name"] for node in nodes} == {"file", "disk"}
    script.run("query-block")
    script.run("query-blockstats", query_nodes=True)
    graph = script.run("x-debug-query-block-graph")
    assert {"file", "disk"} <= {node["name"] for node in graph["nodes"]}
    (export,) = script.run("query-block-exports")
    assert export["id"] == "export"


def change_objects(script: Script) -> None:
    """Objects come, change and go."""
    script.run("object-add", qom_type="iothread", id="extra")
    script.run("qom-list", path="/objects")
    script.run("qom-set", path="/objects/extra", property="poll-max-ns", value=1000)
    assert script.run("qom-get", path="/objects/extra", property="poll-max-ns") == 1000
    script.run("qom-list-types", implements="iothread")
    script.run("qom-list-properties", typename="iothread")
    script.refuse("object-del", "not found", id="nothing")


def change_nodes(script: Script, directory: Path) -> None:
    """Nodes beside the guest's come, change and go."""
    other = image.create(directory / "other.img", image.MIB)
    script.run("blockdev-add", driver="file", node_name="other", filename=str(other))
    script.run("blockdev-add", driver="raw", node_name="window", file="other")
    script.refuse("blockdev-del", "in use", node_name="other")
    script.refuse("x-blockdev-change", ".", parent="window", child="file")
    if "blockdev-set-active" in script.known:
        script.run("blockdev-set-active", node_name="window", active=False)
        script.run("blockdev-set-active", node_name="window", active=True)
    window = {"driver": "raw", "node-name": "window", "file": "other", "read-only": True}
    script.run("blockdev-reopen", options=[window])
    script.run("blockdev-del", node_name="window")
    script.run("blockdev-del", node_name="other")
    script.refuse("blockdev-del", "in use", node_name="disk")


def change_the_disk(script: Script, guest: Machine) -> None:
    """The guest's own disk grows, changes its options, passes a threshold."""
    version = script.run("query-version")["qemu"]["major"]
    for size in (SIZE * 2, SIZE):
        script.run("block_resize", node_name="disk", size=size)
        sectors = size // 512
        if version < 8:  # QEMU 7.2 doesn't tell the guest
            continue
        guest.run(wait_for(f"[ $(cat /sys/block/vda/size) = {sectors} ]"), "wait for the size")
    options = {"driver": "raw", "node-name": "disk", "file": "file", "detect-zeroes": "on"}
    script.run("blockdev-reopen", options=[options])
    script.run("block-set-write-threshold", node_name="disk", write_threshold=64 * 1024)
    script.event("BLOCK_WRITE_THRESHOLD", **{"node-name": "disk"})


def change_chardevs(script: Script) -> None:
    """Character devices come and go; there is no NBD server."""
    ring = {"type": "ringbuf", "data": {"size": 64}}
    script.run("chardev-add", id="ring", backend=ring)
    script.run("ringbuf-write", device="ring", data="hello")
    assert script.run("ringbuf-read", device="ring", size=5) == "hello"
    assert {"ring", "qmp"} <= {info["label"] for info in script.run("query-chardev")}
    script.run("query-chardev-backends")
    script.run("chardev-add", id="null", backend={"type": "null", "data": {}})
    script.run("chardev-change", id="null", backend={"type": "null", "data": {}})
    script.run("chardev-send-break", id="null")
    script.run("chardev-remove", id="null")
    script.run("chardev-remove", id="ring")
    script.refuse("nbd-server-stop", "NBD server not running")
    script.refuse("nbd-server-add", "NBD server not running", device="disk")
    script.refuse("nbd-server-remove", "not found", name="disk")
    bogus = {"type": "unix", "data": {"path": "/nonexistent/nbd"}}
    script.refuse("nbd-server-start", ".", addr=bogus)


def add_and_remove_exports(script: Script, guest: Machine, directory: Path) -> None:
    """A second disk is made, exported, plugged, used, unplugged and taken away."""
    second = image.create(directory / "second.img", 8 * image.MIB)
    attached = VhostUserDisk(directory / "second.sock", identifier="disk1")
    script.run("blockdev-add", driver="file", node_name="second", filename=str(second))
    address = {"type": "unix", "path": str(attached.path)}
    members: dict[str, Any] = {"node_name": "second", "addr": address, "writable": True}
    kind = "vhost-user-blk"
    script.run("block-export-add", type=kind, id="second", iothread="extra", **members)
    script.refuse("block-export-add", "already in use", type=kind, id="second", **members)
    guest.plug(attached)
    guest.run(wait_for("[ -b /dev/vdb ]"), "wait for the second disk")
    guest.run("echo on the second disk | dd of=/dev/vdb bs=512 conv=sync,fsync 2> /dev/null")
    assert image.read(second, 0, 18) == b"on the second disk"
    assert len(script.run("query-block-exports")) == 2
    guest.unplug(attached)
    guest.run(wait_for("! [ -e /sys/block/vdb ]"), "wait for the second disk to go")
    script.run("block-export-del", id="second", mode="hard")
    script.event("BLOCK_EXPORT_DELETED", id="second")
    assert len(script.run("query-block-exports")) == 1
    script.run("blockdev-del", node_name="second")
    script.run("object-del", id="extra")


@pytest.mark.usefixtures("vhostblk_only")
def test_an_export_is_not_removed_under_its_guest_unless_by_force(directory: Path) -> None:
    disk = image.create(directory / "disk.img", SIZE)
    attached = VhostUserDisk(directory / "v.sock")
    with serving(Program.VHOSTBLK, Export(disk), directory) as (_, monitor):
        with Machine(directory, attached) as guest:
            guest.run("dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2> /dev/null")
            with pytest.raises(ExecuteError, match="export 'export' still in use"):
                monitor.execute("block-export-del", {"id": "export"})
            digest = guest.run("sha256sum < /dev/vda").split()[0]
            monitor.execute("block-export-del", {"id": "export", "mode": "hard"})
            monitor.wait_event("BLOCK_EXPORT_DELETED", id="export")
            assert monitor.execute("query-block-exports") == []
            monitor.execute("blockdev-del", {"node-name": "disk"})
            assert image.sha256(disk) == digest
