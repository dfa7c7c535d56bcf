# SPDX-License-Identifier: Apache-2.0
"""Random tests of the write path, checked against a model of the disk.

A *program* (`program.py`) defines a disk and the actions of its guest and its administrator. It is
plain data: hypothesis draws programs (`strategies.py`) and shrinks them (`search.py`). Shrunk
programs that once failed are in `regressions.py`. `run.py` runs a program on the real block layer:

- `images.py` makes the image files, `stack.py` the nodes above and below them; `world.py` holds
  everything together;
- `store.py` is the file under the images: it delays and records requests, and can be full or fail;
- `guests.py` has the entry points of requests: the block backend, and an export in either lane;
  `player.py` makes the requests;
- `changes.py` has the administrator's actions: snapshots, resize, reopen, crash, and so on.

The judges share no code with the code under test. `disk.py` has the possible values of each sector,
`qcow2_reader.py` reads and checks image files, `crash.py` creates the states that a power cut may
leave, and `judge.py` compares files with the model, and at the end with QEMU's view.

`python -m tests.model --seed N --seconds S` runs for hours. CI runs `test_disk.py`.
"""
