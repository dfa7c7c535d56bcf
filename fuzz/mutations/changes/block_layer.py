# SPDX-License-Identifier: Apache-2.0
"""The block layer between users and drivers: edges, shaping, drained sections, graph changes."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_EDGE = "vhostblk/block/graph/edge.py"
_SHAPING = "vhostblk/block/io/shaping.py"
_TRACKER = "vhostblk/block/io/tracker.py"
_BACKEND = "vhostblk/block/graph/backend.py"
_DRAIN = "vhostblk/block/graph/drain.py"
_GRAPH = "vhostblk/block/graph/graph.py"
_REOPEN = "vhostblk/block/graph/reopen.py"
_OVERLAY = "vhostblk/block/graph/overlay.py"
_BITMAP = "vhostblk/block/bitmaps/dirty_bitmap.py"
_BITMAPS = "vhostblk/block/bitmaps/node_bitmaps.py"

_EDGES = ("tests/block/test_edge.py", "tests/block/test_extent_map.py")
_GRAPHS = ("tests/block/test_graph.py", "tests/block/test_graph_property.py")

MUTATIONS = (
    Mutation(
        "fua-past-a-driver-that-has-none",
        _EDGE,
        """
          or not nbytes
        - or (flags and int(flags) & ~self._plain_flags)
          or (offset | nbytes) & self._align_mask
        """,
        "With the write cache off, an acknowledged write is in a cache only.",
        _EDGES,
    ),
    Mutation(
        "fua-without-a-flush",
        _EDGE,
        """
        - if flags & WriteFlags.FUA and not self.node.native_flags & WriteFlags.FUA:
        -     await self.flush()
        """,
        "With the write cache off, an acknowledged write is in a cache only.",
        _EDGES,
    ),
    Mutation(
        "fua-of-zeroes-lost",
        _EDGE,
        """
        - passed = flags if node.native_flags & WriteFlags.FUA else flags & ~WriteFlags.FUA
        + passed = flags & ~WriteFlags.FUA
        """,
        "With the write cache off, acknowledged zeroes are in a cache only, behind a filter.",
        ("tests/filters/test_flags.py",),
    ),
    Mutation(
        "fua-lost-by-detect-zeroes",
        _EDGE,
        """
        - await self.pwrite_zeroes(offset, iov.nbytes, flags)
        + await self.pwrite_zeroes(offset, iov.nbytes, flags & ~WriteFlags.FUA)
          return
        """,
        "With the write cache off and detect-zeroes, a write of zeroes is in a cache only.",
        ("tests/block/test_write_through.py",),
    ),
    Mutation(
        "write-past-the-end",
        _EDGE,
        """
        - if offset + length > self.node.size:
        + if offset > self.node.size:
              if not self._may_grow:
        """,
        "A user without the permission to resize makes a disk longer.",
        (*_EDGES, "tests/block/test_growing.py"),
    ),
    Mutation(
        "write-past-a-fixed-end",
        _EDGE,
        """
              raise os_error(errno.EIO)
        - if not self.node.grows_by_writing:
        -     raise os_error(errno.ENOSPC)
        """,
        "A format's write past the end of a node that can't grow reaches the driver.",
        ("tests/block/test_growing.py", "tests/block/test_raw_window.py"),
    ),
    Mutation(
        "write-to-a-part-of-the-last-block",
        _EDGE,
        """
        - if end & mask and (end | mask) >= self.node.size and not self.perm & Perm.RESIZE:
        + if end & mask and (end | mask) > self.node.size + mask and not self.perm & Perm.RESIZE:
              raise os_error(errno.EPERM)
        """,
        "A guest's write to the last sectors makes file and disk longer.",
        ("tests/block/test_last_block.py",),
    ),
    Mutation(
        "resize-of-a-backing-file",
        _GRAPH,
        """
        - check_not_backing(node)
          backend = BlockBackend("", Perm.RESIZE)
        """,
        "A backing file shrinks under its overlay.",
        ("tests/qmp_block",),
    ),
    Mutation(
        "burst-on-a-read-only-node",
        _EDGE,
        """
          and not watched
        - and self._plain_flags >= 0
          and self._memory_alignment == 1
        """,
        "Writes in bursts reach a node that is read-only.",
        _EDGES,
    ),
    Mutation(
        "burst-past-the-bitmaps",
        _EDGE,
        """
          node.takes_bursts
        - and not watched
          and self._plain_flags >= 0
        """,
        "An incremental backup lacks data that was written in bursts.",
        ("tests/block/test_node_bitmaps.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "write-past-the-bitmaps",
        _EDGE,
        """
        - watched = node.write_tracker is not None or node.recorders
        + watched = node.write_tracker is not None
        """,
        "An incremental backup lacks data that was written.",
        ("tests/block/test_node_bitmaps.py",),
    ),
    Mutation(
        "engine-past-the-bitmaps",
        _EDGE,
        """
          and not self.node.write_threshold
        - and not self.node.recorders
        """,
        "An incremental backup lacks data that the engine has written.",
        ("tests/block/test_node_bitmaps.py", "tests/block/test_extent_map.py"),
    ),
    Mutation(
        "engine-discards-past-the-bitmaps",
        _EDGE,
        """
        - elif self.node.recorders and discard is Treatment.FILE:
        -     discard = Treatment.ASK
        """,
        "An incremental backup lacks ranges that the engine has discarded.",
        ("tests/block/test_node_bitmaps.py", "tests/block/test_extent_map.py"),
    ),
    Mutation(
        "no-flush-for-formats",
        _EDGE,
        """
        - if options.cache.no_flush and not self.node.children:
        + if options.cache.no_flush:
              flush = Treatment.IGNORE
        """,
        "With cache.no-flush, the engine never lets a format's tables get to the file: killing the "
        "daemon loses them.",
        ("integration/qcow2/test_flush.py",),
    ),
    Mutation(
        "no-flush-keeps-tables-in-memory",
        _EDGE,
        """
        - await node.flush_children()
        + pass
        """,
        "With cache.no-flush, a flush leaves a format's tables in memory: killing the daemon loses "
        "them.",
        ("integration/qcow2/test_flush.py",),
    ),
    Mutation(
        "flush-covers-what-came-meanwhile",
        _EDGE,
        """
          await node.flush()
        - node.flushed_generation = generation
        + node.flushed_generation = node.write_generation
        """,
        "A write that completes during a flush counts as flushed, so the next flush does nothing.",
        _EDGES,
    ),
    Mutation(
        "flush-that-failed-counts",
        _EDGE,
        """
        - await node.flush()
        - node.flushed_generation = generation
        + node.flushed_generation = generation
        + await node.flush()
        """,
        "The flush after one that failed does nothing.",
        _EDGES,
    ),
    Mutation(
        "rmw-beside-plain-writes",
        _EDGE,
        """
          if limits.request_alignment > self._parent_alignment():
        -     self._track_writes()
        +     pass
        """,
        "A read-modify-write undoes an overlapping write.",
        ("tests/block/test_edge.py", "tests/block/test_extent_map.py"),
    ),
    Mutation(
        "rmw-is-not-serialising",
        _SHAPING,
        """
        - tracked = await _enter(node, low, high - low, serialising=True)
        + tracked = await _enter(node, low, high - low)
        """,
        "A read-modify-write undoes an overlapping write.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "plain-writes-do-not-wait-for-rmw",
        _TRACKER,
        """
        - if self._serialising:
        + if self._serialising > 1:
              return None
        """,
        "A read-modify-write undoes an overlapping write.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "rmw-waits-for-rmw-only",
        _TRACKER,
        """
        - (self.serialising or other.serialising)
        + (self.serialising and other.serialising)
        """,
        "A read-modify-write undoes an overlapping write.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "rmw-in-one-block-only",
        _TRACKER,
        """
        - and self.start < other.stop
          and other.start < self.stop
        + and self.start == other.start
        """,
        "A read-modify-write undoes a write that overlaps its second block.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "rmw-entered-after-waiting",
        _TRACKER,
        """
              earlier = {other: None for other in near if other.excludes(write)}
        -     self._places.add(write)
          self._active[write] = None
          return earlier
        ...
                      await turn
        +     if self._places is not None:
        +         self._places.add(write)
          except BaseException:
        """,
        "Writes that come while a read-modify-write waits don't see it, and it undoes them.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "rmw-does-not-wait-for-the-untracked",
        _TRACKER,
        """
        - if serialising and self._earlier:
        -     await self._drain_earlier()
        """,
        "A read-modify-write undoes a write that was in flight when tracking began.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "rmw-tail-lost",
        _SHAPING,
        """
        - ends = [end for end, missing in (("head", head), ("tail", tail)) if missing]
        + ends = [end for end, missing in (("head", head), ("tail", tail and not head)) if missing]
        """,
        "A write that begins and ends inside blocks loses the data behind it in its last block.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "discard-of-half-blocks",
        _SHAPING,
        """
          align = limits.request_alignment
        - low = -(-offset // align) * align
          high = (offset + length) // align * align
        + low = offset // align * align
        """,
        "A discard discards data before it in its first block.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "zeroes-to-the-end-of-the-block",
        _SHAPING,
        """
          low = -(-offset // align) * align
        - high = stop // align * align
        + high = -(-stop // align) * align
          if low >= high:
        """,
        "A write of zeroes zeroes data behind it in its last block.",
        ("tests/block/test_edge.py",),
    ),
    Mutation(
        "failed-write-not-in-the-bitmap",
        _SHAPING,
        """
          try:
              await node.pwritev(offset, iov, flags)
        - finally:
              if node.recorders:
        -         node.record_change(offset, iov.nbytes)
        +         node.record_change(offset, iov.nbytes)
        + finally:
              _leave(node, tracked)
        """,
        "An incremental backup lacks the part that a failed write has written.",
        ("tests/block/test_node_bitmaps.py",),
    ),
    Mutation(
        "shaped-write-not-in-the-bitmap",
        _SHAPING,
        """
          node.write_generation += 1
        - node.record_change(offset, length)
          _send_event(node, "pwritev_done")
        """,
        "An incremental backup lacks unaligned writes, and zeroes.",
        ("tests/block/test_node_bitmaps.py",),
    ),
    Mutation(
        "discard-not-in-the-bitmap",
        _SHAPING,
        """
          finally:
              node.write_generation += 1
        -     node.record_change(offset, length)
        """,
        "An incremental backup lacks discarded ranges.",
        ("tests/block/test_node_bitmaps.py",),
    ),
    Mutation(
        "write-counts-as-flushed",
        _SHAPING,
        """
        - node.write_generation += 1
          node.record_change(offset, length)
          _send_event(node, "pwritev_done")
        """,
        "A flush after a write does nothing, where writes are counted.",
        ("tests/block/test_edge.py", "tests/block/test_blkdebug.py"),
    ),
    Mutation(
        "write-cache-off-is-on",
        _BACKEND,
        """
        - self.pwritev = edge.pwritev if self._write_cache else self._pwritev_through
        + self.pwritev = edge.pwritev
        """,
        "With the write cache off, an acknowledged write is in a cache only.",
        _EDGES,
    ),
    Mutation(
        "write-cache-off-in-bursts-is-on",
        _BACKEND,
        """
        - return self.edge.pwritev_burst(offsets, iovs) if self._write_cache else None
        + return self.edge.pwritev_burst(offsets, iovs)
        """,
        "With the write cache off, an acknowledged burst is in a cache only.",
        _EDGES,
    ),
    Mutation(
        "write-cache-off-for-zeroes-is-on",
        _BACKEND,
        """
        - if not self._write_cache:
        -     flags |= WriteFlags.FUA
          await self.edge.pwrite_zeroes(offset, length, flags)
        """,
        "With the write cache off, acknowledged zeroes are in a cache only.",
        ("tests/filters/test_flags.py",),
    ),
    Mutation(
        "write-cache-switch-not-bound",
        _BACKEND,
        """
          self._write_cache = enabled
        - self._bind()
        """,
        "A guest turns the write cache off; its acknowledged writes are in a cache only.",
        _EDGES,
    ),
    Mutation(
        "drained-with-requests-in-flight",
        _BACKEND,
        """
          self.quiesce()
          try:
        -     await self.drain()
              yield
        """,
        "The graph changes during requests in flight, which go to a closed node.",
        ("tests/block/test_drain.py",),
    ),
    Mutation(
        "drained-for-one-request",
        _BACKEND,
        """
        - if self._idle and not self.in_flight:
        + if self._idle:
              waiting, self._idle = self._idle, []
        ...
        - while self.in_flight:
        + if self.in_flight:
              idle: Completion[None] = Completion()
        """,
        "A drained section begins when one of several requests has ended.",
        ("tests/block/test_drain.py",),
    ),
    Mutation(
        "request-enters-a-drained-section",
        _BACKEND,
        """
        - while self._quiesce_depth:
        + if self._quiesce_depth:
              resumed: Completion[None] = Completion()
        """,
        "A request that has waited for one drained section enters the next one.",
        ("tests/block/test_drain.py",),
    ),
    Mutation(
        "detached-with-requests-in-flight",
        _BACKEND,
        """
        - await self.drain()
          edge, self._edge = self._edge, None
        """,
        "An image is closed while requests are in flight.",
        ("tests/block/test_drain.py",),
    ),
    Mutation(
        "drained-below-a-filter-only",
        _DRAIN,
        """
        - for node in with_ancestors(nodes):
        + for node in nodes:
              for edge in node.parents:
        """,
        "A node changes while requests from a node above it are in flight.",
        ("tests/block/test_drain.py",),
    ),
    Mutation(
        "drained-without-settling",
        _DRAIN,
        """
        - for node in with_descendants(with_ancestors(self._nodes)):
        -     await node.settle()
        """,
        "The graph changes while a filter copies data of its own accord.",
        ("tests/block", "tests/filters"),
    ),
    Mutation(
        "latecomer-in-a-drained-section",
        _GRAPH,
        """
        - for section in self._drained_sections:
        -     section.hold_users()
          return edge
        """,
        "An export that is added during a drained section writes inside it.",
        ("tests/block/test_drain.py",),
    ),
    Mutation(
        "inactive-without-a-flush",
        _GRAPH,
        """
        - await _flush(with_descendants(chosen), what)
          try:
              nodes = activation.to_inactivate(chosen)
        """,
        "Another host takes over an image that is not on stable storage.",
        ("tests/block/test_activation.py",),
    ),
    Mutation(
        "active-with-the-old-image",
        _GRAPH,
        """
              for node in reversed(nodes):
        -         await node.reload_image()
        +         pass
          except BlockError:
        """,
        "An image that another process has changed meanwhile is used with its former tables.",
        (
            "tests/block/test_activation.py",
            "tests/exports/test_ownership.py",
            "integration/qcow2/test_node_changes.py",
        ),
    ),
    Mutation(
        "inactive-and-still-locked",
        "vhostblk/block/graph/activation.py",
        """
                  edge.perm, edge.shared, edge.shared_outside = Perm.NONE, Perm.ALL, Perm.ALL
        - update_permissions(nodes)
          _refresh(nodes)
        """,
        "The process that should take over an image finds it locked.",
        ("tests/block/test_activation.py",),
    ),
    Mutation(
        "inactive-with-its-bitmaps",
        "vhostblk/block/graph/activation.py",
        """
        - node.bitmaps = [each for each in node.bitmaps if not each.persistent]
          node_bitmaps.refresh(node)
        """,
        "Bitmaps that another process has changed meanwhile are overwritten with former content.",
        ("tests/block/test_activation.py", "integration/qcow2/test_bitmaps.py"),
    ),
    Mutation(
        "reopen-without-a-flush",
        _GRAPH,
        """
          loading = reopening.remembering
        - await _flush(dict.fromkeys([*reversed(loading), *nodes]), "Error flushing drive")
          await _release_children(reopening.leaving)
        """,
        "Data written before a reopen stays in the cache of the former file.",
        ("tests/block/test_reopen.py", "tests/block/test_other_data.py"),
    ),
    Mutation(
        "reopen-leaves-frozen-children-alone-no-more",
        _REOPEN,
        """
        - if edge.frozen:
        + if edge.frozen and new is None:
              raise BlockError(
        """,
        "A chain changes below a copy-on-read filter that relies on it.",
        ("tests/block/test_reopen.py", "tests/filters"),
    ),
    Mutation(
        "reopen-undone-in-part",
        _REOPEN,
        """
        - for step in reversed(self._undo):
        + for step in self._undo[:1]:
              step()
          for node in self._prepared:
        """,
        "After a reopen that was refused, some of the nodes have the new options.",
        ("tests/block/test_reopen.py",),
    ),
    Mutation(
        "reopen-keeps-the-old-fast-path",
        _REOPEN,
        """
          for node in self._loaded:
              node.keep_other_data()
        - refresh(self.nodes)
          for node, size in sizes.items():
        """,
        "A node still uses its former limits and options.",
        ("tests/block/test_reopen.py", "tests/block/test_other_data.py"),
    ),
    Mutation(
        "reopen-with-the-former-backing",
        _REOPEN,
        """
          edge.node.parents.remove(edge)
          del node.children[inherit.BACKING]
        - node.child_changed(inherit.BACKING)
          return undo
        """,
        "An image whose backing file was removed still uses it.",
        ("tests/block/test_reopen.py", "integration/qcow2/test_node_changes.py"),
    ),
    Mutation(
        "reopen-keeps-tables-of-the-former-file",
        _REOPEN,
        """
          if node in self.other_data:
        -     self._loaded.append(node)
        -     await node.load_other_data(self.other_data[node])
              refresh([node])
        """,
        "An image that got another file still uses the tables of the former one.",
        ("tests/block/test_other_data.py",),
    ),
    Mutation(
        "reopen-that-failed-keeps-the-other-tables",
        _REOPEN,
        """
        - for node in reversed(self._loaded):
        -     node.drop_other_data()
          for step in reversed(self._undo):
        """,
        "After a reopen that failed, an image uses the tables of the file that it didn't get.",
        ("tests/block/test_other_data.py",),
    ),
    Mutation(
        "reopen-changes-no-bitmap",
        _REOPEN,
        """
          for node, bitmaps in self._recording.items():
        -     _mark_all(node, bitmaps)
        +     assert node not in bitmaps
        """,
        "An incremental backup lacks the data of the new file.",
        ("tests/block/test_other_data.py",),
    ),
    Mutation(
        "reopen-writes-before-its-marks",
        "vhostblk/block/drivers/qcow2/reloading.py",
        """
        - if self.writable_image:
        -     self._image.defer_writes()
        + pass
        """,
        "An image is written to before the file says that its bitmaps are out of date.",
        ("tests/block/test_other_data.py",),
        equivalent="The graph is drained until `start_writing` has put the marks in the file.",
    ),
    Mutation(
        "overlay-over-unflushed-data",
        _OVERLAY,
        """
          if not base.read_only and base.active:
              with errors_as(BlockError, f"Write to node '{base.node_name}' failed"):
        -         await flush_node(base)
        +         pass
        """,
        "The base of a snapshot is not on stable storage, and never flushed again.",
        ("tests/qmp_block/test_overlay.py", "integration/qcow2/test_external_snapshots.py"),
    ),
    Mutation(
        "overlay-for-some-users",
        _OVERLAY,
        """
        - return [edge for edge in self._base.parents if edge.parent not in below]
        + return [edge for edge in self._base.parents[:1] if edge.parent not in below]
        """,
        "After a snapshot some users still write to the base image.",
        ("tests/qmp_block/test_overlay.py", "tests/block/test_graph.py"),
    ),
    Mutation(
        "overlay-on-its-own-file",
        _OVERLAY,
        """
        -     check_no_loop(overlay, base)

          async def _check_data(self) -> None:
        """,
        "The overlay of a snapshot is made in a file of its own chain.",
        ("tests/qmp_block/test_files_in_use.py",),
    ),
    Mutation(
        "overlay-abort-keeps-the-overlay",
        _OVERLAY,
        """
          async def abort(self) -> None:
              \"\"\"Change the graph back.\"\"\"
        -     self._take_back()
        +     self._refresh()
        """,
        "A transaction that fails leaves its snapshots in place.",
        ("tests/qmp_block/test_overlay.py",),
    ),
    Mutation(
        "transaction-undone-first-to-last",
        "vhostblk/block/graph/actions.py",
        """
          except BaseException:
        -     for action in reversed(prepared):
        +     for action in prepared:
                  await action.abort()
        """,
        "Dependent actions of a failed transaction are undone in the wrong order.",
        ("tests/qmp_block/test_transaction.py::test_an_abort_undoes_the_last_action_first",),
    ),
    Mutation(
        "transaction-not-drained",
        "vhostblk/block/graph/actions.py",
        """
        - await drained.enter_async_context(graph.drained(action.nodes()))
        + action.nodes()
          await action.prepare()
        """,
        "A guest's write comes between the snapshots of two disks.",
        ("tests/qmp_block/test_transaction.py", "tests/qmp_block/test_overlay.py"),
    ),
    Mutation(
        "bitmap-lacks-the-last-granule",
        _BITMAP,
        """
        - return offset >> self.granularity_bits, -(-stop >> self.granularity_bits)
        + return offset >> self.granularity_bits, stop >> self.granularity_bits
        """,
        "An incremental backup lacks the end of a write.",
        ("tests/block/test_dirty_bitmap.py",),
    ),
    Mutation(
        "bitmap-lacks-a-word",
        _BITMAP,
        """
        - self.words[low + 1 : high] = _ALL if value else 0
        + self.words[low + 1 : high - 1] = _ALL if value else 0
        """,
        "An incremental backup lacks the middle of a long write.",
        ("tests/block/test_dirty_bitmap.py",),
    ),
    Mutation(
        "bitmap-overwrites-a-word",
        _BITMAP,
        """
        - self.words[index] = word | mask if value else word & ~mask
        + self.words[index] = mask if value else word & ~mask
        """,
        "An incremental backup lacks data next to a write.",
        ("tests/block/test_dirty_bitmap.py",),
    ),
    Mutation(
        "bitmap-forgets-when-resized",
        _BITMAP,
        """
        - self.words[:kept] = former[:kept]
        + self.words[: kept - 1] = former[: kept - 1]
        """,
        "An incremental backup lacks data that was written before the disk grew.",
        ("tests/block/test_dirty_bitmap.py",),
    ),
    Mutation(
        "bitmap-not-resized",
        _EDGE,
        """
        - for bitmap in node.bitmaps:
        -     bitmap.resize(node.size)
          for edge in list(node.parents):
              if isinstance(edge.parent, BlockNode):
                  notify_resize(edge.parent)
        """,
        "An incremental backup lacks data that was written past the disk's former end.",
        ("tests/block/test_node_bitmaps.py",),
    ),
    Mutation(
        "bitmap-enabled-and-not-recording",
        _BITMAPS,
        """
          bitmap.disabled = self._disabled
        - refresh(node)
        """,
        "An incremental backup lacks data that was written since its bitmap was enabled.",
        ("tests/block/test_node_bitmaps.py",),
    ),
    Mutation(
        "bitmap-disable-undone-and-not-recording",
        _BITMAPS,
        """
          self._bitmap.disabled = self._former
        - refresh(self._node)
        """,
        "A bitmap that a failed transaction was to disable records nothing any more.",
        ("tests/block/test_node_bitmaps.py",),
    ),
    Mutation(
        "bitmap-cleared-by-a-failed-transaction",
        _BITMAPS,
        """
        - self._former = bitmap.words.copy()
        + self._former = bitmap.words
          bitmap.clear()
        """,
        "A transaction that fails has cleared the bitmap: the next backup lacks its ranges.",
        ("tests/block/test_node_bitmaps.py", "tests/qmp_block/test_transaction.py"),
    ),
)
