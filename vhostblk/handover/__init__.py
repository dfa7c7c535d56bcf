# SPDX-License-Identifier: Apache-2.0
"""Handing a running daemon's work over to a new process: an upgrade that guests see as a pause.

The running daemon gives (`giver.py`), the new one takes (`taker.py`); they talk over a Unix socket
(`wire.py`):

    taker                             giver
    Hello(version)            ──►
                              ◄──     Configuration: objects, nodes, exports; sockets of monitors
    imports, objects, monitors
    Prepared                  ──►     flushes; then the pause begins:
                                      stops vrings, closes the images, keeps them locked
                              ◄──     State: connections, what front-ends have said, lock guards
    opens the images, maps memory, starts vrings (they take no requests yet)
    Ready                     ──►     from here on the giver never touches anything again
                              ◄──     Commit
    the vrings run: the pause is over
    hangs up                          ends

Until the giver has sent `Commit` it can go on: where the taker says `Failure`, or is gone, it opens
the images again, and replays to itself what it has sent. A taker that hangs then dies before it can
touch anything again (`leash.py`). A session travels as the messages that bring a fresh one to where
it was (`vhost_user/journal.py`, `restate.py`). The taker reads nothing from front-ends before
`Commit`: what it has read would be lost to the giver. Where a session can't be told its messages
again, the taker fails; the giver, which has to go on, disconnects that front-end.

The image locks are never gone: the giver holds them on an open file of its own, the guard, which
the taker gets and whose locks it looks through (`block/locking.py`).
"""
