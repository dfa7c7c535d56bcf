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

All exports stop at the same time. A front-end may be in the middle of a message, or not read its
reply: what has come of the message, and what has to be sent of the reply, is part of the state. If
requests in flight don't finish soon, the hand-over fails, and the exports go on.

Until the giver has sent `Commit`, it can resume: if the taker sends `Failure` or exits, the giver
opens the images again, and replays the sessions to itself. A taker that hangs is then killed before
it can touch anything again (`leash.py`). A session is sent as messages that bring a fresh session
to the same state (`vhost_user/journal.py`, `restate.py`). The taker reads nothing from front-ends
before `Commit`, as the giver would miss it. If these messages can't be replayed, the taker fails;
the giver, which has to resume, disconnects that front-end.

The image locks are held all the time: the giver holds them on an open file of its own, the guard.
The taker gets the guard, and ignores its locks (`block/graph/locking.py`).
"""
