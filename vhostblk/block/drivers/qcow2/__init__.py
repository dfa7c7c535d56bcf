# SPDX-License-Identifier: Apache-2.0
"""`qcow2`: QEMU's image format, versions 2 and 3 (`docs/interop/qcow2.txt` in QEMU's sources).

What is where: `layout` (facts of the format), `header` (parsing, pure) and `header_file` (changing
it, in memory and in the file), `options` (what the user chose), `tables` (the L1 table and cached
slices of L2 tables) with `kept` (which of them go), `mapping` (what L2 entries mean), `refcounts`,
`refcount_changes` and `allocator` (which clusters of the file are in use), `gather` with
`references` and `spans` (what refers to them), `places` (room for metadata), `overlap` with
`ordered` (what metadata is where), `dirty`, `commit` and `flush` (what is to be written, in which
order, and when), `guest_data`, `write`, `write_fresh` with `ahead` and `scratch`,
`write_compressed`, `zero` and `read` (the data path), `publish`, `volatile` and `referred` (the
extent map), `snapshots`, `snapshot_changes` and `snapshot_apply`, `bitmaps` and `bitmap_store`,
`resize`, `check` with `repair` and `copied`, `pace` (turns of long work), `create`, `opening`,
`lifecycle` and `reloading` (opening and closing), and `node` (the driver, which joins them).
"""
