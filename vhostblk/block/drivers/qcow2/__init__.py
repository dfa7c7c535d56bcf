# SPDX-License-Identifier: Apache-2.0
"""`qcow2`: QEMU's image format, versions 2 and 3 (`docs/interop/qcow2.txt` in QEMU's sources).

The modules: `layout` (constants of the format), `header` (parsing, pure) and `header_file` (changes
of the header, in memory and in the file), `options` (the user's settings), `tables` (the L1 table
and cached slices of L2 tables) with `kept` (cache eviction), `mapping` (the meaning of L2 entries),
`refcounts`, `refcount_changes` and `allocator` (cluster allocation), `gather` with `references` and
`spans` (all references to clusters), `places` (storage for metadata), `overlap` with `ordered` (the
clusters that hold metadata), `dirty`, `commit` and `flush` (order and time of metadata writes),
`guest_data`, `write`, `write_fresh` with `ahead` and `scratch`, `write_compressed`, `zero` and
`read` (the data path), `publish`, `volatile` and `referred` (the extent map), `snapshots`,
`snapshot_changes` and `snapshot_apply`, `bitmaps` and `bitmap_store`, `resize`, `check` with
`repair` and `copied`, `pace` (long work in turns), `create`, `opening`, `lifecycle` and `reloading`
(opening and closing), and `node` (the driver, which joins them).
"""
