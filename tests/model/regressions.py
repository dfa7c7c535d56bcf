# SPDX-License-Identifier: Apache-2.0
"""Shrunk programs that once failed, with the fault that each has found."""

from __future__ import annotations

#: By name; each is a program as `Program.to_json` writes it. `{lane}` stands for the entry point.
REGRESSIONS: dict[str, str] = {
    # Clusters allocated in advance for a stream replaced clusters of the same burst.
    "sparse-stream": (
        '{"options":{"size":65536,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,1024,10,1024]],"depth":1},{"ops":[["write",10240,128,96,256]]}]}'
    ),
    # The same between two streams of one burst.
    "two-sparse-streams": (
        '{"options":{"size":98304,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,1024,10,1024],["write",40960,1024,10,1024]],"depth":1},'
        '{"ops":[["write",10240,128,64,256],["write",51200,128,64,384]]}]}'
    ),
    # A cluster of an external data file was discarded at commit, after a later write.
    "data-file-discard": (
        '{"options":{"size":4096,"data_file":"plain","seed":3,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,128]]},{"ops":[["discard",0,128]]},{"ops":[["write",0,128]]},'
        '{"ops":[["flush",0,0]]},{"ops":[["read",0,128]]}]}'
    ),
    "data-file-unmap": (
        '{"options":{"size":4096,"data_file":"plain","seed":3,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,128]]},{"ops":[["unmap",0,128]]},{"ops":[["write",0,128]]},'
        '{"ops":[["flush",0,0]]},{"ops":[["read",0,128]]}]}'
    ),
    # A durable write to a cluster whose L2 entry was in memory only.
    "write-through-new-cluster": (
        '{"options":{"size":4096,"cuts":true,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,8]]},{"act":"cache","on":false},{"ops":[["write",8,8]]}]}'
    ),
    # A durable write to a cluster whose L2 entry was just being written to the file.
    "write-through-meets-flush": (
        '{"options":{"size":4096,"cuts":true,"write_cache":false,"pace":"straggling","seed":9,'
        '"lane":"{lane}"},"steps":[{"ops":[["write",1024,128]]},'
        '{"ops":[["write",0,8,3,8],["read",1024,8,30]],"depth":2}]}'
    ),
    # Tables of the former file were used for the new one.
    "swapped-files": (
        '{"options":{"size":4096,"second":true,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,8]]},{"ops":[["write",1280,8]],"disk":1},{"act":"swap"},'
        '{"ops":[["read",0,128]]},{"ops":[["write",0,8]]}]}'
    ),
    "swapped-with-an-empty-file": (
        '{"options":{"size":4096,"second":true,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,8]]},{"act":"swap"},{"ops":[["write",1280,8]]}]}'
    ),
    # After a power cut, "copied" bits were not set, which QEMU reported.
    "snapshot-deleted": (
        '{"options":{"size":4096,"cuts":true,"lane":"{lane}"},"steps":[{"ops":[["write",0,512]]},'
        '{"act":"snapshot","name":"c"},{"act":"delete_snapshot","name":"c"},'
        '{"ops":[["write",0,8,64,8]],"depth":4}]}'
    ),
    # Readers evicted a table that was about to change from a small cache.
    "table-pushed-out": (
        '{"options":{"cluster_bits":9,"pace":"straggling","members":{"l2-cache-size":1024},'
        '"lane":"{lane}"},"steps":[{"ops":[["write",0,250]]},{"act":"restart"},'
        '{"ops":[["discard",13,500],["read",15,1000]],"depth":16}]}'
    ),
    # On a full file system, acknowledged data could not be read after the image was closed.
    "full": (
        '{"options":{"size":61440,"lane":"{lane}"},"steps":[{"act":"space","blocks":40},'
        '{"ops":[["write",0,128,64,128],["flush",0,0]]}]}'
    ),
    # A raw node that shows all of the file counted as other data.
    "raw-below-a-copy": (
        '{"options":{"format":"raw","size":4096,"lane":"{lane}"},"steps":['
        '{"act":"insert_above","kind":"copy-before-write"},{"act":"insert_below","kind":"raw"},'
        '{"ops":[["write",0,8]]},{"act":"remove_below"}]}'
    ),
}
