# SPDX-License-Identifier: Apache-2.0
"""Trace points: places in the code that say what happens, when asked to.

    from vhostblk.trace import points as trace

    if trace.blk_root_attach.enabled:
        trace.blk_root_attach(backend.name, node.node_name)

A point that is off costs the look at one attribute. All points are declared in `points.py`, but for
those of the QMP commands, which come with the commands (`vhostblk.qmp.registry`). `-T` turns them
on (`options.py`). A line has QEMU's form with time stamps: `pid@seconds.microseconds:name text`.
"""
