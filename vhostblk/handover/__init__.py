# SPDX-License-Identifier: Apache-2.0
"""Hand-over of a running daemon's work to a new process: an upgrade that guests see as a pause.

The running daemon is the giver (`giver.py`), the new one the taker (`taker.py`). They communicate
over a Unix socket (`wire.py`):

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

All exports stop at the same time. A front-end may have sent only a part of a message, or not have
read its reply: the part of the message and the unsent part of the reply belong to the state. If
requests in flight don't complete soon, the hand-over fails, and the exports continue.

Until the giver has sent `Commit`, it can resume: if the taker sends `Failure` or exits, the giver
opens the images again, and replays the sessions to itself. A taker that hangs is then killed before
it can touch anything again (`leash.py`). A session is sent as messages that bring a new session to
the same state (`vhost_user/journal.py`, `restate.py`). The taker reads nothing from front-ends
before `Commit`, because the giver would miss it. If the messages can't be replayed, the taker
fails, and the giver, which must resume, disconnects that front-end.

The image locks are held all the time. The giver holds them on a separate open file, the guard.
The taker gets the guard, and ignores its locks (`block/graph/locking.py`).
"""
