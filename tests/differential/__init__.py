# SPDX-License-Identifier: Apache-2.0
"""The differential runner: one script, on vhostblk and on QEMU's storage daemon.

    python -m tests.differential SCRIPT…              run scripts and print the differences
    python -m tests.differential --show SCRIPT        print all outcomes of both
    python -m tests.differential --random --seed 1 --seconds 3600

A script is plain text. It is run for each daemon in a scratch directory of its own, which is the
working directory of the daemon and of shell lines.

| line | does | |---|---| | `# text` | nothing | | `> {"execute": …}` | sends a line over QMP;
`{dir}` in it is the scratch directory | | `wait EVENT {"id": "j"}` | waits for an event with these
members, if the last command succeeded | | `$ qemu-img create -f qcow2 a 1M` | runs a shell line;
QEMU's programs come from the Debian root | | `io e.sock read 0 64k; flush` | makes requests
concurrently, on a vhost-user-blk socket | | `start --object iothread,id=io` | starts the daemon
with arguments; by default the first `>` does | | `kill` | kills the daemon (SIGKILL) | | `exit` |
waits until the daemon has ended, and compares its exit status | | `said` | compares the daemon's
output | | `but NAME` | declares the difference of the next line's outcomes
(`tests.differential.declared`) | | `but NAME events` | declares the difference of events | |
`ordered` | from here on, compares the order of members, and of events between answers |

A line that begins with a space continues the previous line. Requests of `io`: `read OFFSET LENGTH`,
`write OFFSET LENGTH BYTE`, `zero OFFSET LENGTH [unmap]`, `discard OFFSET LENGTH`, `flush`, `id`.
These must be alone in a line: `connect`, `size`, `dump` (reads up to 64 MiB), `cache on|off`,
`close` (disconnects).

At the end the daemon gets the command `quit`. Events are compared in order, separately for each
kind and subject. Outcomes are compared without values that depend on time and place (`normal`):
directories, numbers in generated names, process IDs, dates, the host storage that files use.

| module | contains |
|---|---|
| `script` | the format of scripts |
| `daemon`, `disk` | a QMP connection to a daemon, a connection to a disk |
| `session` | one daemon that runs a script |
| `comparison` | two sessions, and their differences |
| `declared`, `known` | intended differences, and those still to be fixed |
| `world`, `values`, `generator` | random scripts |
| `shrink` | the smallest script that shows a difference |
"""
