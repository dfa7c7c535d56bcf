# SPDX-License-Identifier: Apache-2.0
"""A model of the disk as the judge of the write path.

A *program* (`program.py`) says how a disk is made and what its guest and its administrator do. It
is plain data: hypothesis draws programs (`strategies.py`) and makes them small (`search.py`), and a
small one is kept in `regressions.py`. `run.py` runs a program on the real block layer:

- `images.py` makes the image files, `stack.py` the nodes above and below them, `world.py` has all;
- `store.py` is the file under the images: it delays, records, and can be full or fail;
- `guests.py` has the ways in: the block backend, and an export in either lane; `player.py` makes
  requests;
- `changes.py` does what an administrator does: snapshots, resize, reopen, crash, and so on.

The judges know nothing of the code under test: `disk.py` says what each sector may read as,
`qcow2_reader.py` reads and checks image files, `crash.py` makes the states that a power cut leaves,
`judge.py` compares, and asks QEMU at the end.

`python -m tests.model --seed N --seconds S` runs for hours; `test_disk.py` is what CI runs.
"""
