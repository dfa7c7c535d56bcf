# SPDX-License-Identifier: Apache-2.0
"""Running a script with one daemon."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

from peers.debian import TRIXIE, RootError, program
from tests.differential.daemon import PATIENCE, Daemon, DaemonGoneError
from tests.differential.disk import Disk, FrontendError
from tests.differential.normal import Normalizer
from tests.differential.script import Control, Io, Qmp, Shell, Wait
from tests.frontend.ring import CompletionTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.differential.script import Step
    from tests.qmp_exports.daemons import Program

#: QEMU's programs that shell lines can run by name.
_TOOLS = ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")

#: The outcome of a step: an answer, or lines of text.
Outcome = dict[str, Any] | list[str]


def make_tools(directory: Path) -> Path:
    """Make a directory of QEMU's programs for shell lines."""
    directory.mkdir()
    for name in _TOOLS:
        path = directory / name
        try:
            command = program(name, TRIXIE.path)
        except RootError:
            continue  # shell lines then use the installed one
        path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        path.chmod(0o755)
    return directory


class Session:
    """A program and its scratch directory."""

    def __init__(self, program: Program, directory: Path, tools: Path) -> None:
        """Make the directory; `tools` comes first in the PATH of shell lines."""
        self.program = program
        self.directory = directory / "scratch"
        self.directory.mkdir(parents=True)
        self.log = directory / "log"
        self.events: list[tuple[str, Any]] = []
        #: Whether the last command succeeded.
        self.succeeded = False
        #: Whether the daemon has ended by itself.
        self.died = False
        self._tools = tools
        self._normal = Normalizer(self.directory)
        self._daemon: Daemon | None = None
        self._disks: dict[str, Disk] = {}
        self._mark = 0
        self._told = 0

    def close(self) -> None:
        """Disconnect, and kill the daemon."""
        for name in list(self._disks):
            self._disks.pop(name).close()
        if self._daemon is not None:
            self._daemon.close()

    def run(self, step: Step) -> Outcome:
        """Run a step."""
        try:
            outcome = self._run(step)
        except DaemonGoneError as error:
            self.died = True
            outcome = [str(error)]
        if step.ordered:
            return [f"event {json.dumps(event)}" for event in self._new_events()] + [
                json.dumps(outcome)
            ]
        return _sorted(outcome) if isinstance(outcome, dict) else outcome

    def finish(self) -> Outcome:
        """End the daemon; return the outcome. Afterwards `events` has all events."""
        for name in list(self._disks):
            self._disks.pop(name).close()
        if self._daemon is None:
            return []
        outcome = []
        if self._daemon.process.poll() is None:
            try:
                self._daemon.execute("quit")
            except DaemonGoneError as error:
                self.died = True
                outcome = [str(error)]
        status = self._daemon.wait_end()
        self._keep_events()
        return [*outcome, "killed" if status is None else f"exit status {status}"]

    def output(self) -> str:
        """Return the daemon's output."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _run(self, step: Step) -> Outcome:
        match step.action:
            case Qmp(line):
                return self._qmp(line)
            case Wait(event, members):
                return self._wait(event, members)
            case Shell(line):
                return self._shell(line)
            case Io(socket, requests):
                return self._io(socket, requests)
            case Control("start", arguments):
                return self._start(shlex.split(arguments.replace("{dir}", str(self.directory))))
            case Control("kill"):
                daemon = self._running()
                daemon.close()
                self._end()
                return ["killed"]
            case Control("exit"):
                status = self._running().wait_end()
                self._end()
                return ["doesn't end" if status is None else f"exit status {status}"]
            case _:
                return self._normal.text(self.output()).splitlines()

    def _start(self, arguments: Sequence[str]) -> Outcome:
        if self._daemon is not None:
            return ["a daemon is running"]
        try:
            self._daemon = Daemon(self.program, self.log, arguments, self.directory)
        except DaemonGoneError as error:
            said = self._normal.text(self.output()).splitlines()
            return [str(error), *said]
        self._mark = self._told = 0
        return ["started"]

    def _running(self) -> Daemon:
        if self._daemon is None:
            raise DaemonGoneError("no daemon is running")
        return self._daemon

    def _qmp(self, line: str) -> Outcome:
        if self._daemon is None and (started := self._start([])) != ["started"]:
            return started
        daemon = self._running()
        self._mark = len(daemon.events)
        self.succeeded = False
        answer = daemon.send(line.replace("{dir}", str(self.directory)))
        self.succeeded = "return" in answer
        normal: dict[str, Any] = self._normal.json(answer)
        return normal

    def _wait(self, event: str, members: dict[str, Any]) -> Outcome:
        if not self.succeeded:
            return ["the last command failed"]
        came = self._running().wait_event(event, members, self._mark)
        return ["came" if came else f"no such event in {PATIENCE:.0f} seconds"]

    def _shell(self, line: str) -> Outcome:
        path = f"{self._tools}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        try:
            done = subprocess.run(
                ["sh", "-c", line],
                cwd=self.directory,
                env={**os.environ, "PATH": path, "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"doesn't end in {PATIENCE:.0f} seconds"]
        said = self._normal.text(done.stdout.decode(errors="replace")).splitlines()
        return [*said, f"status {done.returncode}"]

    def _io(self, socket: str, requests: Sequence[Any]) -> Outcome:
        if requests[0].what == "close":
            if (disk := self._disks.pop(socket, None)) is not None:
                disk.close()
            return ["closed"]
        try:
            if socket not in self._disks:
                self._disks[socket] = Disk(self.directory / socket)
            return self._disks[socket].run(requests)
        except CompletionTimeoutError:
            return ["requests don't end"]
        except TimeoutError:
            return ["no answer to a connection"]
        except OSError as error:
            return [f"can't connect: {error.strerror}"]
        except FrontendError:
            if (disk := self._disks.pop(socket, None)) is not None:
                disk.close()
            self.died = self._daemon is not None and self._daemon.has_ended()
            return ["disconnected"]

    def _end(self) -> None:
        """Forget a daemon that has ended."""
        self._keep_events()
        self._running().close()
        self._daemon = None
        for name in list(self._disks):
            self._disks.pop(name).close()

    def _keep_events(self) -> None:
        self.events += self._new_events()

    def _new_events(self) -> list[tuple[str, Any]]:
        if self._daemon is None:
            return []
        new = self._daemon.events[self._told :]
        self._told = len(self._daemon.events)
        return [(name, self._normal.json(data)) for name, data in new]


def _sorted(answer: dict[str, Any]) -> dict[str, Any]:
    """Sort members, so that both sides show them in the same order."""
    value: dict[str, Any] = json.loads(json.dumps(answer, sort_keys=True))
    return value
