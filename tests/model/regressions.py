# SPDX-License-Identifier: Apache-2.0
"""Programs that went wrong once, made small, and what was the matter."""

from __future__ import annotations

#: By name; each is a program as `Program.to_json` writes it. `{lane}` stands for the way in.
REGRESSIONS: dict[str, str] = {
    # A stream is given clusters in advance; they took the place of clusters of the same burst.
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
    # An external data file forgot a cluster when the discard was committed, after a later write.
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
    # A write through to a cluster whose table was in memory only.
    "write-through-new-cluster": (
        '{"options":{"size":4096,"cuts":true,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,8]]},{"act":"cache","on":false},{"ops":[["write",8,8]]}]}'
    ),
    # A write through to a cluster whose table was on its way to the file.
    "write-through-meets-flush": (
        '{"options":{"size":4096,"cuts":true,"write_cache":false,"pace":"straggling","seed":9,'
        '"lane":"{lane}"},"steps":[{"ops":[["write",1024,128]]},'
        '{"ops":[["write",0,8,3,8],["read",1024,8,30]],"depth":2}]}'
    ),
    # Tables of the former file served the new one.
    "swapped-files": (
        '{"options":{"size":4096,"second":true,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,8]]},{"ops":[["write",1280,8]],"disk":1},{"act":"swap"},'
        '{"ops":[["read",0,128]]},{"ops":[["write",0,8]]}]}'
    ),
    "swapped-with-an-empty-file": (
        '{"options":{"size":4096,"second":true,"lane":"{lane}"},"steps":['
        '{"ops":[["write",0,8]]},{"act":"swap"},{"ops":[["write",1280,8]]}]}'
    ),
    # After a power cut QEMU complained of bits "copied" that were not set.
    "snapshot-deleted": (
        '{"options":{"size":4096,"cuts":true,"lane":"{lane}"},"steps":[{"ops":[["write",0,512]]},'
        '{"act":"snapshot","name":"c"},{"act":"delete_snapshot","name":"c"},'
        '{"ops":[["write",0,8,64,8]],"depth":4}]}'
    ),
    # Readers pushed a table out of a small cache that was about to change.
    "table-pushed-out": (
        '{"options":{"cluster_bits":9,"pace":"straggling","members":{"l2-cache-size":1024},'
        '"lane":"{lane}"},"steps":[{"ops":[["write",0,250]]},{"act":"restart"},'
        '{"ops":[["discard",13,500],["read",15,1000]],"depth":16}]}'
    ),
    # What a full file system had taken could not be reached after all was closed.
    "full": (
        '{"options":{"size":61440,"lane":"{lane}"},"steps":[{"act":"space","blocks":40},'
        '{"ops":[["write",0,128,64,128],["flush",0,0]]}]}'
    ),
}
