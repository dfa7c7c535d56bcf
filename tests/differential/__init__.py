# SPDX-License-Identifier: Apache-2.0
"""The differential runner: one script, on vhostblk and on QEMU's storage daemon.

    python -m tests.differential SCRIPT…              run scripts and print what differs
    python -m tests.differential --show SCRIPT        print all that both answer
    python -m tests.differential --random --seed 1 --seconds 3600

A script is plain text. Each daemon goes through it in a scratch directory of its own, which is the
working directory of the daemon and of shell lines.

| line | does |
|---|---|
| `# text` | nothing |
| `> {"execute": …}` | sends a line over QMP; `{dir}` in it is the scratch directory |
| `wait EVENT {"id": "j"}` | waits for an event with these members, if the last command succeeded |
| `$ qemu-img create -f qcow2 a 1M` | runs a shell line; QEMU's programs are those of the root |
| `io e.sock read 0 64k; flush` | has requests in flight together, on a vhost-user-blk socket |
| `start --object iothread,id=io` | starts the daemon with arguments; else the first `>` starts it |
| `kill` | kills the daemon (SIGKILL) |
| `exit` | waits until the daemon has ended, for its status |
| `said` | compares what the daemon has printed |
| `but NAME` | says why the next line has different outcomes (`tests.differential.declared`) |
| `but NAME events` | says why events differ |
| `ordered` | from here on the order of members counts, and where events come between answers |

A line that begins with a blank goes on with the line before. Requests of `io`: `read OFFSET
LENGTH`, `write OFFSET LENGTH BYTE`, `zero OFFSET LENGTH [unmap]`, `discard OFFSET LENGTH`, `flush`,
`id`. Alone in a line: `connect`, `size`, `dump` (reads up to 64 MiB), `cache on|off`, `close`
(disconnects).

At the end the daemon is told to quit. Events are compared by kind and subject, in their order. What
depends on time and place is taken out of all outcomes (`normal`): directories, numbers in made-up
names, process IDs, dates, what files take on the host.

| module | is about |
|---|---|
| `script` | the format |
| `daemon`, `disk` | a daemon under QMP, a disk under requests |
| `session` | one daemon that goes through a script |
| `comparison` | two of them, and what differs |
| `declared` | differences that are meant to be, and those that are not settled yet |
| `world`, `values`, `generator` | random scripts |
| `shrink` | the smallest script that shows a difference |
"""
