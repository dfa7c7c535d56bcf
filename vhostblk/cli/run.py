# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: it processes the options in order, handles signals, and exits."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vhostblk import systemd
from vhostblk.block.graph.storage import check_unused
from vhostblk.cli.errors import StartupError, UsageError
from vhostblk.cli.handover import Handover
from vhostblk.cli.limits import raise_descriptor_limit
from vhostblk.cli.pidfile import PidFile
from vhostblk.cli.preload import Preloader
from vhostblk.cli.report import log_statistics
from vhostblk.cli.short_form import choose_node, image_blockdev, short_export
from vhostblk.daemon import Daemon
from vhostblk.engine.iothreads import IothreadStuckError
from vhostblk.errors import VhostblkError, reason
from vhostblk.fatal import clean_up_with
from vhostblk.schema.errors import HelpRequestedError
from vhostblk.schema.options import sandbox_options
from vhostblk.stderr import StderrHandler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostblk.cli.arguments import Arguments, Step
    from vhostblk.cli.daemonize import Readiness
    from vhostblk.cli.planned import Planned
    from vhostblk.sandbox.apply import Sandbox

logger = logging.getLogger(__name__)

#: Complete requests in flight, flush and exit.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Print statistics.
STATISTICS_SIGNAL = signal.SIGUSR1


class _HelpPrintedError(Exception):
    """An option asked for help, which was printed; not an error."""


def run(arguments: Arguments, readiness: Readiness | None) -> int:
    """Serve until a signal arrives; raises VhostblkError if start-up or shutdown fails."""
    _set_up_logging(arguments.log)
    raise_descriptor_limit()
    try:
        for step in arguments.traces:
            _set_up_tracing(step)
        sandbox = _sandbox(arguments)
        asyncio.run(_serve_or_leave(arguments, readiness, sandbox))
    except _HelpPrintedError:
        pass
    except OSError as error:  # for example the last flush
        raise VhostblkError(f"while closing: {reason(error)}") from error
    return 0


def _set_up_logging(form: str) -> None:
    handler = StderrHandler()
    if form == "json":
        from vhostblk.log import JsonFormatter

        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("vhostblk: %(message)s"))
    logging.basicConfig(handlers=[handler])


def _set_up_tracing(step: Step) -> None:
    from vhostblk.qmp.commands import load_all
    from vhostblk.trace import options

    load_all()  # each command declares trace points
    with _located(step.location):
        options.apply(step.value, lambda text: logger.warning("warning: %s", text))


def _sandbox(arguments: Arguments) -> Sandbox:
    """Enter the sandbox."""
    from vhostblk.sandbox.apply import Sandbox

    options = identity = None
    if (step := arguments.run_as) is not None:
        from vhostblk.sandbox import identity as identities

        with _located(step.location):
            identity = identities.find(step.value)
    if (step := arguments.sandbox) is not None:
        with _located(step.location), _answering_help(step):
            options = sandbox_options(step.value)
    monitored = any(step.option == "monitor" for step in arguments.steps)
    # A monitor or another daemon may add such an object later.
    keyring = (
        monitored
        or arguments.takeover is not None
        or any(
            step.option == "object" and "secret_keyring" in step.value for step in arguments.steps
        )
    )
    sandbox = Sandbox(options, identity, monitored=monitored, keyring=keyring)
    with _located("--sandbox"):
        sandbox.enter()
    return sandbox


async def _serve_or_leave(
    arguments: Arguments, readiness: Readiness | None, sandbox: Sandbox
) -> None:
    """Serve; where an iothread is stuck in the end, exit without waiting for what waits for it."""
    try:
        await _serve(arguments, readiness, sandbox)
    except IothreadStuckError as error:
        print(f"vhostblk: {error}", file=sys.stderr, flush=True)
        logging.shutdown()
        os._exit(1)


async def _serve(arguments: Arguments, readiness: Readiness | None, sandbox: Sandbox) -> None:
    daemon = Daemon()
    daemon.holds_commands = True  # clients must not see a daemon that is half built
    handover = Handover(daemon, _value(arguments.takeover), _value(arguments.handover))
    sandbox.prepare_loop()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, daemon.request_stop)
    pidfile = None
    preloader = Preloader()
    try:
        async with daemon:
            loop.add_signal_handler(STATISTICS_SIGNAL, log_statistics, daemon)
            if await _build_unless_stopped(daemon, arguments, handover):
                pidfile = _make_pidfile(arguments.pidfile, handover)
                with _located(_location(arguments.handover)):
                    handover.serve(pidfile.leave if pidfile is not None else lambda: None)
                made = handover.made_files
                made += [] if arguments.pidfile is None else [arguments.pidfile]
                if arguments.run_as is not None:
                    await preloader.run()
                with _located("--run-as" if arguments.sandbox is None else "--sandbox"):
                    sandbox.close_files(daemon, made)
                preloader.start()
                _tell_ready(daemon, readiness, handover)
                handover.release()
                daemon.take_commands()
                await daemon.stop_requested.wait()
                if not handover.given:
                    systemd.notify("STOPPING=1")
                await handover.close()
    finally:
        await preloader.stop()
        if pidfile is not None:
            pidfile.remove()


def _value(step: Step | None) -> str | None:
    return None if step is None else step.value


def _location(step: Step | None) -> str:
    return "" if step is None else step.location


def _make_pidfile(path: str | None, handover: Handover) -> PidFile | None:
    """Write the file; after a take-over, guests depend on this process, and errors are logged."""
    if path is None:
        return None
    try:
        pidfile = PidFile(path, check_unused)
    except VhostblkError as error:
        told = f"cannot create PID file: {error}"
        if not handover.taken:
            raise StartupError(told) from error
        logger.error("%s; going on without it, as the take-over is done", told)
        return None
    clean_up_with(pidfile.remove)
    return pidfile


async def _build_unless_stopped(daemon: Daemon, arguments: Arguments, handover: Handover) -> bool:
    """Build the daemon; return False if a signal interrupted that."""
    building = asyncio.create_task(_build(daemon, arguments, handover))
    stopping = asyncio.create_task(daemon.stop_requested.wait())
    await asyncio.wait({building, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    building.cancel()  # no effect if it is complete
    try:
        await building
    except asyncio.CancelledError:
        return False
    return not daemon.stop_requested.is_set()


async def _build(daemon: Daemon, arguments: Arguments, handover: Handover) -> None:
    """Process the options in the order given, the short form last."""
    daemon.chardevs.stdio_available = not arguments.daemonize
    planned = None if arguments.takeover is None else _plan(arguments)
    with _located(_location(arguments.takeover)):
        taking_over = await handover.begin(planned)
    if not taking_over:
        await _carry_out(daemon, arguments.steps)
        if arguments.address is not None:
            await _build_short_form(daemon, arguments.image, arguments.address)
        return
    # The other daemon supplies everything else.
    monitors = [step for step in arguments.steps if step.option in ("chardev", "monitor")]
    await _carry_out(daemon, monitors)
    with _located(_location(arguments.takeover)):
        await handover.finish()


def _plan(arguments: Arguments) -> Planned:
    """Return what the command line would create."""
    from vhostblk.cli.planned import Planned

    planned = Planned()
    for step in arguments.steps:
        with _located(step.location), _answering_help(step):
            planned.add(step)
    if (address := arguments.address) is not None:
        with _located(arguments.image or address.location), _answering_help(address):
            planned.add_short_form(arguments.image, address.value)
    return planned


async def _carry_out(daemon: Daemon, steps: list[Step]) -> None:
    for step in steps:
        with _located(step.location), _answering_help(step):
            if step.option == "chardev":
                await daemon.add_chardev(step.value)
            elif step.option == "monitor":
                from vhostblk.qmp.monitors import add_monitor

                add_monitor(daemon, step.value)
            elif step.option == "object":
                daemon.add_object(step.value)
            elif step.option == "blockdev":
                await daemon.add_blockdev(step.value)
            else:
                await daemon.add_export(step.value)


async def _build_short_form(daemon: Daemon, image: str | None, address: Step) -> None:
    with _located(address.location), _answering_help(address):
        export, image_format = short_export(address.value)
    if image is None:
        with _located(address.location):
            if image_format is not None:
                raise UsageError("format= needs an image, and none is named")
            export = choose_node(export, daemon.graph)
    else:
        with _located(image):
            node = await daemon.add_blockdev(image_blockdev(image, export, image_format))
        export = choose_node(export, daemon.graph, node.node_name)
    with _located(address.location):
        await daemon.add_export(export)
    if not export.writable and sys.stderr.isatty():
        print(
            f"vhostblk: export '{export.id}' is read-only: writable=on lets guests write",
            file=sys.stderr,
        )


@contextmanager
def _located(location: str) -> Iterator[None]:
    """Put the text of the option in front of an error's message."""
    try:
        yield
    except (HelpRequestedError, _HelpPrintedError):
        raise
    except (OSError, VhostblkError) as error:
        raise VhostblkError(f"{location}: {reason(error)}") from error


@contextmanager
def _answering_help(step: Step) -> Iterator[None]:
    try:
        yield
    except HelpRequestedError as request:
        from vhostblk.cli.help import has_help, option_help

        if not has_help(step.option):
            raise VhostblkError(str(request)) from None
        print(option_help(step.option, request.options))
        raise _HelpPrintedError from None


def _tell_ready(daemon: Daemon, readiness: Readiness | None, handover: Handover) -> None:
    """Notify the parent, systemd, or the user at a terminal, that clients can connect."""
    if not daemon.exports and not list(daemon.chardevs):
        logger.warning("warning: nothing is exported, and there is no monitor to change that")
    systemd.notify(f"MAINPID={os.getpid()}\nREADY=1" if handover.taken else "READY=1")
    if readiness is not None:
        readiness.announce()
    elif sys.stderr.isatty():
        for export_id, arguments in daemon.connect_hints().items():
            words = shlex.join(["qemu-system-x86_64", *arguments])
            print(f"vhostblk: to connect export '{export_id}': {words}", file=sys.stderr)
