# SPDX-License-Identifier: Apache-2.0
"""Moving sessions and images to another process."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_JOURNAL = "vhostblk/vhost_user/journal.py"
_RESTATE = "vhostblk/vhost_user/restate.py"
_GIVER = "vhostblk/handover/giver.py"
_TAKER = "vhostblk/handover/taker.py"
_SERVER = "vhostblk/vhost_user/server.py"

_HANDOVER = ("tests/frontend/test_handover.py", "tests/handover")
_MOVES = ("tests/vhost_user/test_journal.py", "tests/exports/test_moving.py", *_HANDOVER)

MUTATIONS = (
    Mutation(
        "journal-forgets-the-base",
        _RESTATE,
        """
          yield from _described(index, vring.size, vring.addresses, vring.log_addr)
        - yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, vring.base))
          return
        """,
        "After a hand-over a vring that was stopped continues from its first base.",
        _MOVES,
    ),
    Mutation(
        "journal-starts-vrings-at-0",
        _RESTATE,
        """
        - yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, config.next_avail))
          if vring.inband:
              yield _plain(Request.VRING_KICK, VRING_STATE.pack(index, 0))
          elif kick is not None:
              yield kick
        + yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, config.next_avail))
        """,
        "After a hand-over a vring starts at 0 and does old requests again.",
        _MOVES,
    ),
    Mutation(
        "journal-starts-vrings-where-they-were-told",
        _RESTATE,
        """
        - yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, config.next_avail))
        + yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, vring.base))
          if vring.inband:
        """,
        "After a hand-over a vring does old requests again.",
        _MOVES,
    ),
    Mutation(
        "journal-without-in-band-kicks",
        _RESTATE,
        """
        - if vring.inband:
        -     yield _plain(Request.VRING_KICK, VRING_STATE.pack(index, 0))
        - elif kick is not None:
        + if kick is not None:
              yield kick
        """,
        "After a hand-over a vring with in-band kicks starts at 0 and does old requests again.",
        _MOVES,
    ),
    Mutation(
        "journal-in-band-vring-kicked-by-an-old-descriptor",
        _JOURNAL,
        """
        - if vring.inband or not (vring.started or deferred):
        + if not (vring.started or deferred):
              self._forget(Request.SET_VRING_KICK, index)
        """,
        "A vring that was restarted in-band is started again by its former descriptor.",
        _MOVES,
        equivalent="Messages of an in-band vring are made without the descriptor.",
    ),
    Mutation(
        "journal-vring-of-later-addresses",
        _RESTATE,
        """
        - yield from _described(index, config.size, addresses, vring.log_addr)
        + yield from _described(index, vring.size, vring.addresses, vring.log_addr)
          yield _plain(Request.SET_VRING_BASE, VRING_STATE.pack(index, config.next_avail))
        """,
        "After a hand-over a vring uses addresses that were set for its next start.",
        _MOVES,
    ),
    Mutation(
        "journal-keeps-removed-memory",
        _JOURNAL,
        """
          said.fds.close()
        - if former_region := self._regions.pop((guest, size, user), None):
        + if former_region := self._regions.get((guest, size, user + 1)):
              former_region.fds.close()
        """,
        "After a hand-over memory is mapped that the front-end has removed and reused.",
        _MOVES,
    ),
    Mutation(
        "journal-keeps-an-old-table",
        _JOURNAL,
        """
          for former in self._regions.values():
              former.fds.close()
        - self._regions.clear()
        """,
        "After a hand-over memory is mapped that the front-end has removed and reused.",
        _MOVES,
    ),
    Mutation(
        "journal-without-the-inflight-area",
        _JOURNAL,
        """
          _KEPT = _KEPT_OF_VRING | {
              Request.SET_LOG_BASE,
              Request.SET_LOG_FD,
              Request.SET_BACKEND_REQ_FD,
              Request.SET_DEVICE_STATE_FD,
        -     Request.SET_INFLIGHT_FD,
          }
        """,
        "After a hand-over requests in flight are not recorded: a crash then loses them.",
        _MOVES,
    ),
    Mutation(
        "journal-with-the-area-given-since",
        _JOURNAL,
        """
        - self._running[index][1] if index in self._running else present
        + present
          for index in range(len(state.vrings))
        """,
        "After a hand-over a queue uses another record: after a kill its requests are lost.",
        _MOVES,
    ),
    Mutation(
        "journal-without-the-dirty-log",
        _JOURNAL,
        """
          _BEFORE_VRINGS = (
        -     Request.SET_LOG_BASE,
              Request.SET_LOG_FD,
        """,
        "A hand-over during a migration: later writes are missing at the destination.",
        _MOVES,
    ),
    Mutation(
        "journal-without-the-log-of-used-rings",
        _RESTATE,
        """
        - flags = 0 if log_addr is None else VRING_F_LOG
        + flags = 0
          payload = VRING_ADDR.pack(index, flags, desc, used, avail, log_addr or 0)
        """,
        "A hand-over during a migration: used rings are not noted any more.",
        _MOVES,
    ),
    Mutation(
        "handover-serves-before-the-commit",
        _TAKER,
        """
          await self._build_on_leash(daemon, state, fds)
        - await self._wait_for_commit()
          for export in daemon.exports.values():
              export.resume()
        + await self._wait_for_commit()
        """,
        "The new process serves requests although the old one may have resumed.",
        ("tests/handover/test_taker.py",),
    ),
    Mutation(
        "handover-unlocks-the-images",
        _GIVER,
        """
        - guards = _make_guards(daemon)
          since = time.monotonic()
        """,
        "While images change hands, a third process opens them.",
        _HANDOVER,
    ),
    Mutation(
        "handover-guards-not-trusted-and-lost",
        _TAKER,
        """
        - self._guards.append(taken)
        - taken.trust()
        + taken.trust()
        + taken.close()
        """,
        "While images change hands, a third process opens them.",
        _HANDOVER,
    ),
    Mutation(
        "handover-leaves-images-open",
        _GIVER,
        """
        - await daemon.graph.close()
          told = True
        """,
        "Two processes have an image open for writing; tables in memory are written too late.",
        _HANDOVER,
    ),
    Mutation(
        "part-of-a-message-left-behind",
        _SERVER,
        """
        - kept = Carried(self._listener, None, (), received, unsent)
        + kept = Carried(self._listener, None, (), unsent=unsent)
        """,
        "A front-end in the middle of a message is disconnected by a hand-over.",
        ("tests/exports/test_moving.py",),
    ),
    Mutation(
        "rest-of-a-reply-left-behind",
        _SERVER,
        """
        - decoder.give_part(carried.received)
        - await self._send(connection, carried.unsent)
        + decoder.give_part(carried.received)
        """,
        "A front-end that reads its reply late waits for the rest of it for ever.",
        ("tests/exports/test_suspending.py",),
    ),
    Mutation(
        "late-export-stays-suspended",
        _SERVER,
        """
          if not task.done():
        -     self._suspending = False
              raise
        """,
        "An export that was too slow for a hand-over serves nobody from then on.",
        ("tests/exports/test_suspending.py",),
    ),
    Mutation(
        "pause-without-end",
        _GIVER,
        """
          for export_id, task in tasks.items():
        -     if export_id in daemon.exports:
        -         task.cancel()
        +     assert export_id, task
          await asyncio.wait(tasks.values())
        """,
        "A request that hangs stops all guests for ever.",
        ("tests/handover/test_pause.py",),
    ),
)
