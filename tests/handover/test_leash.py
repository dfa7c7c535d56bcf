# SPDX-License-Identifier: Apache-2.0
"""What ends a process on the leash, and what doesn't."""

from __future__ import annotations

import os
import signal

import pytest

from tests.descriptors import open_fds
from vhostblk.handover.errors import HandoverError
from vhostblk.handover.leash import Holder, Leash


def on_leash(holder: Holder, *, taken_off: bool) -> int:
    """Start a process that puts the leash on and waits for its end; return its number."""
    told, telling = os.pipe()
    pid = os.fork()
    if not pid:
        leash = Leash(os.dup(holder.leash))
        holder.let_go()  # our copies
        leash.put_on()
        if taken_off:
            leash.take_off()
        os.write(telling, b".")
        signal.alarm(60)
        signal.sigwait([signal.SIGUSR1])
        os._exit(0)
    os.close(telling)
    assert os.read(told, 1) == b"."
    os.close(told)
    return pid


@pytest.mark.parametrize("taken_off", [False, True])
def test_letting_go_kills_while_the_leash_is_on(taken_off: bool) -> None:
    before = open_fds()
    holder = Holder()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        pid = on_leash(holder, taken_off=taken_off)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    holder.given()
    holder.let_go()
    if taken_off:
        os.kill(pid, signal.SIGUSR1)
    _, status = os.waitpid(pid, 0)
    assert status == (0 if taken_off else signal.SIGKILL)
    assert open_fds() <= before


def test_a_giver_that_has_let_go_already_is_noticed() -> None:
    holder = Holder()
    leash = Leash(os.dup(holder.leash))
    holder.let_go()
    # The signal for that came before there was a leash; none comes any more.
    with pytest.raises(HandoverError, match="given up"):
        leash.put_on()
    leash.take_off()
