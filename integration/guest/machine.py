# SPDX-License-Identifier: Apache-2.0
"""A QEMU process with a guest that runs steps: `with Machine(...) as guest: guest.run("...")`.

Emulated processors (TCG), so that it runs anywhere and takes the same time everywhere. The guest's
memory is shared, as vhost-user needs. The agent's line and QMP are socket pairs that QEMU inherits:
no names to collide, and they are gone with the process.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Self

from qemu.qmp import QMPError

from benchmarks.daemons import cpu_seconds
from integration.guest.agent import Agent, Step
from integration.guest.errors import GuestError
from integration.guest.initramfs import initramfs
from integration.guest.kernel import Kernel, find_kernel
from integration.guest.monitor import Monitor

if TYPE_CHECKING:
    from pathlib import Path

QEMU = "qemu-system-x86_64"
# An emulated guest boots in eight seconds, or in a minute where others want the processors as well.
BOOT_TIMEOUT = 180.0
STEP_TIMEOUT = 180.0
_RING_PARTS = ("vring-avail", "vring-used")
# One thread emulates all processors. With a thread for each, guests of QEMU 7.2 now and then hang
# as they boot: one processor ends an interrupt for ever, and the others wait for its answer.
_ACCELERATOR = "tcg,thread=single"
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check"


@dataclass(frozen=True)
class VhostUserDisk:
    """A disk that a daemon serves at `path`."""

    path: Path
    identifier: str = "disk0"
    queues: int = 1
    queue_size: int | None = None
    #: Seconds after which QEMU connects anew when the daemon has gone; 0 is never.
    reconnect: int = 0
    packed: bool = False

    @property
    def chardev(self) -> str:
        """Name of the character device that is the connection."""
        return f"{self.identifier}-socket"

    def chardev_argument(self) -> str:
        """Give the argument of `-chardev`."""
        reconnect = f",reconnect={self.reconnect}" if self.reconnect else ""
        return f"socket,id={self.chardev},path={self.path}{reconnect}"

    def device_properties(self) -> dict[str, object]:
        """Properties of the device, as for `device_add`."""
        properties: dict[str, object] = {
            "driver": "vhost-user-blk-pci",
            "id": self.identifier,
            "chardev": self.chardev,
            "num-queues": self.queues,
        }
        if self.queue_size is not None:
            properties["queue-size"] = self.queue_size
        if self.packed:
            properties["packed"] = True
        return properties

    def arguments(self) -> list[str]:
        """Command line arguments that attach the disk."""
        properties = self.device_properties()
        driver = properties.pop("driver")
        words = [f"{key}={'on' if value is True else value}" for key, value in properties.items()]
        device = ",".join([str(driver), *words])
        return ["-chardev", self.chardev_argument(), "-device", device]


class Machine:
    """A guest from power on until its QEMU has ended. `directory` takes the console log."""

    def __init__(
        self,
        directory: Path,
        *disks: VhostUserDisk,
        cpus: int = 1,
        memory: int = 256,
        arguments: tuple[str, ...] = (),
        incoming: bool = False,
        root: str = "",
    ) -> None:
        """Steps run in the initramfs, or in the system on the guest's device `root`.

        With `incoming` the guest does not boot, but comes from another machine: `migrate`.
        """
        self._directory = directory
        self._disks = disks
        self._cpus = cpus
        self._memory = memory
        self._extra = arguments
        self._incoming = incoming
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._log: IO[bytes] | None = None
        self._sockets: list[socket.socket] = []
        self._agent: Agent | None = None
        self._monitor: Monitor | None = None

    def __enter__(self) -> Self:
        self.start()
        try:
            if not self._incoming:
                self.agent.wait_ready(BOOT_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def agent(self) -> Agent:
        """The line to the guest's shell."""
        assert self._agent is not None, "the machine has not been started"
        return self._agent

    @property
    def monitor(self) -> Monitor:
        """QMP; connected at the first use."""
        if self._monitor is None:
            self._monitor = Monitor(self._sockets[1])
        return self._monitor

    #: What the guest has besides the usual programs.
    programs: tuple[str, ...] = ()

    def files(self) -> dict[str, Path]:
        """Give more files of the guest: their names there, and where they are here."""
        return {}

    def emulator(self) -> list[str]:
        """Give the beginning of QEMU's command line."""
        return [QEMU]

    def kernel(self) -> Kernel:
        """Give the kernel that the guest boots."""
        return find_kernel()

    def command(self, agent_fd: int, monitor_fd: int) -> list[str]:
        """Give QEMU's command line."""
        kernel = self.kernel()
        memory = f"memory-backend-memfd,id=memory,size={self._memory}M,share=on"
        command = [*self.emulator(), "-accel", _ACCELERATOR, "-cpu", "max"]
        command += ["-machine", "pc,memory-backend=memory", "-object", memory]
        command += ["-smp", str(self._cpus), "-m", f"{self._memory}M"]
        command += ["-nodefaults", "-no-user-config", "-display", "none"]
        archive = str(initramfs(kernel, self.programs, self.files()))
        command += ["-kernel", str(kernel.image), "-initrd", archive]
        new_root = f" new_root={self._root}" if self._root else ""
        command += ["-append", _COMMAND_LINE + new_root]
        command += ["-chardev", f"file,id=console,path={self._directory}/console.log"]
        command += ["-chardev", f"socket,id=agent,fd={agent_fd}"]
        command += ["-serial", "chardev:console", "-serial", "chardev:agent"]
        command += ["-chardev", f"socket,id=monitor,fd={monitor_fd}"]
        command += ["-mon", "chardev=monitor,mode=control"]
        for disk in self._disks:
            command += disk.arguments()
        if self._incoming:
            command += ["-incoming", "defer"]
        return [*command, *self._extra]

    def start(self) -> None:
        """Switch on; `agent.wait_ready` tells when the guest is up."""
        self._directory.mkdir(parents=True, exist_ok=True)
        agent, agent_far = socket.socketpair()
        monitor, monitor_far = socket.socketpair()
        self._sockets = [agent, monitor]
        far = (agent_far.fileno(), monitor_far.fileno())
        command = self.command(*far)
        self._log = (self._directory / "qemu.log").open("ab")
        self._began = time.monotonic()
        with agent_far, monitor_far:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=far
            )
        (self._directory / "qemu.command").write_text(shlex.join(command) + "\n")
        self._agent = Agent(agent, self.explain, self.diagnose)

    def run(self, script: str, name: str = "", timeout: float = STEP_TIMEOUT) -> str:
        """Run a shell script in the guest and give its output without the last line's end."""
        self.agent.start(script, name)
        return self.agent.finish(timeout).output.rstrip("\n")

    def run_in_background(self, script: str, name: str = "") -> None:
        """Begin a step; `finish` waits for it."""
        self.agent.start(script, name)
        self.agent.begun(STEP_TIMEOUT)

    def finish(self, timeout: float = STEP_TIMEOUT) -> Step:
        """Wait for the step begun by `run_in_background`."""
        return self.agent.finish(timeout)

    def reboot(self) -> None:
        """Reset the guest without flushing anything, and wait until it has booted again."""
        self.agent.start("reboot -f", "reboot")
        self.agent.wait_ready(BOOT_TIMEOUT)

    def power_off(self, timeout: float = 30.0) -> None:
        """Switch off from inside and wait until QEMU has ended well."""
        self.agent.start("sync; poweroff -f", "poweroff")
        try:
            status = self._running().wait(timeout)
        except subprocess.TimeoutExpired:
            raise GuestError(f"the guest does not switch off{self.explain()}") from None
        if status:
            raise GuestError(f"QEMU ended with status {status}{self.explain()}")

    def migrate(self, target: Machine, timeout: float = 120.0, *, postcopy: bool = False) -> None:
        """Move the guest to a machine that has been made for that, and end this one's QEMU.

        A step that runs in the background goes on; `finish` it there. With `postcopy` the guest
        goes first, and all of its memory follows.
        """
        if postcopy:
            capability = {"capability": "postcopy-ram", "state": True}
            for side in (self, target):
                side.monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
        address = f"unix:{target._directory}/migration.sock"
        target.monitor.execute("migrate-incoming", {"uri": address})
        self.monitor.execute("migrate", {"uri": address})
        if postcopy:
            self.monitor.execute("migrate-start-postcopy")
        deadline = time.monotonic() + timeout
        while (status := self.monitor.execute("query-migrate"))["status"] != "completed":
            if status["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
                raise GuestError(f"no migration: {status}{self.explain()}{target.explain()}")
            time.sleep(0.02)
        while not target.monitor.execute("query-status")["running"]:
            if time.monotonic() > deadline:
                raise GuestError(f"the guest doesn't go on{target.explain()}")
            time.sleep(0.02)
        if postcopy and not status["ram"]["postcopy-requests"]:
            raise GuestError(f"that was no post-copy: {status}")
        self.end()
        target.agent.go_on_from(self.agent)
        self.kill()

    def end(self) -> None:
        """End QEMU at once, and keep what it has said."""
        self._running().kill()
        self._running().wait()

    def alive(self) -> bool:
        """Tell whether QEMU runs."""
        return self._process is not None and self._process.poll() is None

    def plug(self, disk: VhostUserDisk) -> None:
        """Hot-plug a disk; the guest hears of it a little later."""
        path = {"type": "unix", "data": {"path": str(disk.path)}}
        backend = {"type": "socket", "data": {"addr": path, "server": False}}
        self.monitor.execute("chardev-add", {"id": disk.chardev, "backend": backend})
        self.monitor.execute("device_add", disk.device_properties())

    def unplug(self, disk: VhostUserDisk) -> None:
        """Hot-unplug a disk and wait until the guest has let it go."""
        self.monitor.execute("device_del", {"id": disk.identifier})
        self.monitor.wait_event("DEVICE_DELETED", device=disk.identifier)
        self.monitor.execute("chardev-remove", {"id": disk.chardev})

    def kill(self) -> None:
        """End QEMU at once (SIGKILL) and release everything; harmless when it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        for end in self._sockets:
            end.close()
        if self._log is not None:
            self._log.close()

    def explain(self) -> str:
        """The end of the console and of QEMU's messages, to be added to an error."""
        parts = []
        for name in ("console.log", "qemu.log"):
            path = self._directory / name
            text = path.read_text(errors="replace") if path.exists() else ""
            parts.append(f"\n--- {path} ends with ---\n" + "\n".join(text.splitlines()[-30:]))
        return "".join(parts)

    def diagnose(self) -> str:
        """What is known of a guest that does not answer: its time, processors, its disks' queues.

        The guest is of no use afterwards, as QEMU stops the queues to tell of them (7.2).
        """
        try:
            # Of the registers: where each processor is, and whether it sleeps.
            parts = [self._human("info status"), self._human("info registers -a", "IP=")]
            for disk in self._disks:
                for queue in range(disk.queues):
                    parts += self._describe_queue(disk, queue)
        except (GuestError, QMPError) as error:
            parts = [f"QEMU does not answer, either: {error}"]
        return "\n".join(["", self._times(), *parts])

    def _times(self) -> str:
        """Say whether QEMU has had its share of the processors."""
        lived, load = time.monotonic() - self._began, os.getloadavg()[0]
        try:
            used = cpu_seconds(self._running().pid)
        except OSError:
            return "QEMU has ended"
        return f"QEMU has had {used:.1f} s of CPU in {lived:.1f} s; load average {load:.1f}"

    def _describe_queue(self, disk: VhostUserDisk, queue: int) -> list[str]:
        """Say whether a queue has requests: where avail and used index differ."""
        path = f"/machine/peripheral/{disk.identifier}/virtio-backend"
        arguments = {"path": path, "queue": queue}
        ring = self.monitor.execute("x-query-virtio-queue-status", arguments)
        title = f"{disk.identifier}, queue {queue}: flags and index of avail and used ring:"
        # Of packed rings, the event suppression areas.
        return [title, *(self._human(f"xp /2xh {ring[name]}") for name in _RING_PARTS)]

    def _human(self, command: str, having: str = "") -> str:
        """Run a command of the human monitor; give the lines of its answer that have a word."""
        answer = self.monitor.execute("human-monitor-command", {"command-line": command})
        lines = [line.rstrip() for line in str(answer).splitlines()]
        return "\n".join(line for line in lines if having in line)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the machine has not been started"
        return self._process
