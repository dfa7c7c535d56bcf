# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.pr.fuzz --seed N --seconds N`: random clients of the helper.

Half of the time messages, devices' answers and descriptors are random, and all helpers have to
answer alike: ours with compiled code, ours without, QEMU's (where there is one). The other half
clients break off, send ahead, send noise, don't read; then another client is served as ever, and
the helper has as many descriptors open as before.
"""

from __future__ import annotations

import argparse
import random
import socket
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.pr import fake
from tests.pr.client import Client, parameters, reserve_in, reserve_out
from tests.pr.programs import Helper, running
from tests.pr.test_differential import compare, connections, random_case
from tests.pr.test_hostile import unharmed

#: Clients at a time.
_CROWD = 20


def misbehave(chance: random.Random, helper: Helper) -> None:
    """Have a crowd of wrong clients, and one that does all right."""
    with unharmed(helper), ExitStack() as stack:
        device = stack.enter_context(fake.device())
        clients = [stack.enter_context(Client(helper.path, greet=False)) for _ in range(_CROWD)]
        for client in clients:
            client.socket.setblocking(False)
        for _ in range(chance.randrange(100)):
            client = chance.choice(clients)
            with suppress(BlockingIOError, BrokenPipeError, ConnectionError, OSError):
                _do_anything(chance, client, device)


def _do_anything(chance: random.Random, client: Client, device: int) -> None:
    choice = chance.randrange(8)
    if choice == 0:
        client.send(chance.randbytes(chance.randrange(1, 30)))
    elif choice == 1:
        client.send(bytes(4))
    elif choice == 2:
        client.socket.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
    elif choice == 3:
        client.socket.recv(chance.randrange(1, 10_000))
    elif choice == 4:
        whole = reserve_out() + parameters(chance.randrange(1 << 64), chance.randrange(1 << 64))
        cut = chance.randrange(1, len(whole))
        client.send(whole[:cut], [device] * chance.choice([0, 1, 1, 1, 2]))
        client.send(whole[cut:], [device] * chance.choice([0, 0, 0, 1]))
    else:
        message = bytearray(reserve_in(length=chance.randrange(9000)))
        if chance.random() < 0.3:
            message[chance.randrange(16)] = chance.randrange(256)
        client.send(bytes(message), [device] * chance.choice([0, 1, 1, 1, 1, 3, 253]))


def fuzz(seed: int, seconds: float) -> int:
    """Go on for some time; return how many rounds there were."""
    began, rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="pr-fuzz-") as name, ExitStack() as stack:
        directory = Path(name)
        library = fake.build(directory)
        (directory / "alike").mkdir()
        clients = connections(directory / "alike", library, stack)
        helpers = [
            stack.enter_context(running(directory, "-q", library=library, compiled=compiled))
            for compiled in (True, False)
        ]
        while time.monotonic() < began + seconds:
            chance = random.Random(seed + rounds)
            try:
                if rounds % 2:
                    for _ in range(50):
                        compare(clients, *random_case(chance))
                else:
                    misbehave(chance, chance.choice(helpers))
            except BaseException:
                print(f"failed with --seed {seed + rounds}")
                raise
            rounds += 1
        for helper in helpers:
            helper.end()
    return rounds


def main() -> None:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.pr.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    print(f"{fuzz(options.seed, options.seconds)} rounds were well")


if __name__ == "__main__":
    main()
