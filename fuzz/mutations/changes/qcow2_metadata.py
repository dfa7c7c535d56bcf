# SPDX-License-Identifier: Apache-2.0
"""qcow2: tables and refcounts, the order in which they are written, snapshots, resizing."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_QCOW2 = "vhostblk/block/drivers/qcow2"
_COMMIT = f"{_QCOW2}/commit.py"
_KEPT = f"{_QCOW2}/kept.py"
_TABLES = f"{_QCOW2}/tables.py"
_IMAGE = f"{_QCOW2}/image.py"
_REFCOUNTS = f"{_QCOW2}/refcounts.py"
_ALLOCATOR = f"{_QCOW2}/allocator.py"
_OVERLAP = f"{_QCOW2}/overlap.py"
_RESIZE = f"{_QCOW2}/resize.py"
_SNAPSHOTS = f"{_QCOW2}/snapshot_changes.py"
_APPLY = f"{_QCOW2}/snapshot_apply.py"
_BITMAPS = f"{_QCOW2}/bitmap_store.py"
_HEADER = f"{_QCOW2}/header.py"
_HEADER_FILE = f"{_QCOW2}/header_file.py"
_LIFECYCLE = f"{_QCOW2}/lifecycle.py"
_NODE = f"{_QCOW2}/node.py"
_FLUSH = f"{_QCOW2}/flush.py"

_CRASH = ("integration/qcow2/test_writes_in_any_order.py",)
_REFS = ("tests/block/qcow2/test_refcounts.py", "integration/qcow2/test_write.py",
         "integration/qcow2/test_writes_in_any_order.py")  # fmt: skip
_SNAPS = ("integration/qcow2/test_snapshots.py", "integration/qcow2/test_writes_in_any_order.py")
_BITS = ("integration/qcow2/test_bitmaps.py",)
_SIZES = ("integration/qcow2/test_write.py", "integration/qcow2/test_node_changes.py")
_CORRUPTION = ("integration/qcow2/test_corruption.py", "integration/qcow2/test_opening.py")

_ALL_OR_NOTHING = "integration/qcow2/test_all_or_nothing.py"
_CANCELLED = (f"{_ALL_OR_NOTHING}::test_a_task_that_is_cancelled_leaves_the_old_or_the_new",)

MUTATIONS = (
    Mutation(
        "commit-tables-before-refcounts",
        _COMMIT,
        """
        - if not lazy or len(image.refcounts.blocks) > image.refcounts.limit:
        -     await self.write_refcounts()
        - await self._write_tables()
        + await self._write_tables()
        + if not lazy or len(image.refcounts.blocks) > image.refcounts.limit:
        +     await self.write_refcounts()
        """,
        "After a crash a cluster is free that an entry refers to.",
        _CRASH,
    ),
    Mutation(
        "commit-refcounts-and-tables-at-once",
        _COMMIT,
        """
          if dirty:
        -     self._unsynced = True
              await run_all([self._write_block(block) for block in dirty])
        """,
        "After a crash a cluster is free that an entry refers to.",
        _CRASH,
        equivalent="A task that allocates clusters writes data to them, and notes that.",
    ),
    Mutation(
        "commit-reftable-before-its-blocks",
        _COMMIT,
        """
          if refcounts.dirty_entries:
        -     await image.file.flush()
              for low, high in _pages(refcounts.dirty_entries):
        """,
        "After a crash the refcount table refers to a block that wasn't written.",
        _CRASH,
    ),
    Mutation(
        "commit-tables-at-once-with-data",
        _COMMIT,
        """
          if dirty:
        -     if self._unsynced:
        -         await self.sync()
              self._unsynced = True
        """,
        "After a crash entries refer to clusters without data, and without refcounts.",
        _CRASH,
    ),
    Mutation(
        "commit-l1-at-once-with-l2",
        _COMMIT,
        """
          if tables.l1_changes.dirty:
        -     if self._unsynced:
        -         await self.sync()
              low, high = tables.l1_changes.low, tables.l1_changes.high
        """,
        "After a crash an L1 entry refers to a table that wasn't written.",
        _CRASH,
    ),
    Mutation(
        "commit-written-tables-count-as-synced",
        _COMMIT,
        """
        - self._unsynced = True
          await run_all([self._write_slice(found) for found in dirty])
        """,
        "After a crash clusters are free that the file's old entries refer to.",
        _CRASH,
    ),
    Mutation(
        "commit-frees-before-the-tables-are-synced",
        _COMMIT,
        """
          image = self._image
        - if self._unsynced:
        -     await self.sync()
          await image.publisher.settle()
        """,
        "After a crash a cluster to which the file refers is free, and has other data.",
        _CRASH,
    ),
    Mutation(
        "commit-sync-forgets-what-came-meanwhile",
        _COMMIT,
        """
        - self._unsynced = False  # what is written from now on is not covered
          try:
              await self.flush_files()
        +     self._unsynced = False
          except BaseException:
        """,
        "Data written during a flush counts as synced: entries are written to the file before it.",
        _CRASH,
        equivalent="A write without the lock is an overwrite: no entry relies on that.",
    ),
    Mutation(
        "commit-failed-sync-counts",
        _COMMIT,
        """
          except BaseException:
        -     self._unsynced = True
              raise
        """,
        "After a flush that failed entries are written without another one.",
        ("integration/qcow2/test_write_errors.py", *_CRASH),
    ),
    Mutation(
        "commit-flushes-the-metadata-only",
        _COMMIT,
        """
        - if image.data is not image.file:
        -     await image.data.flush()
          await image.file.flush()
        """,
        "With an external data file, a flush leaves the data in a cache.",
        ("integration/qcow2/test_flush.py",),
    ),
    Mutation(
        "commit-one-sector-of-a-slice",
        _COMMIT,
        """
        - high = -(-found.high * per_entry // 64) * 64
        + high = found.high * per_entry // 64 * 64 or 64
        """,
        "The last entries that have changed are never written.",
        ("integration/qcow2/test_write.py",),
    ),
    Mutation(
        "commit-failed-slice-counts-as-written",
        _COMMIT,
        """
          except BaseException:
        -     found.touch(*before)
              raise
        """,
        "Entries whose write failed are never written again.",
        ("integration/qcow2/test_write_errors.py",),
    ),
    Mutation(
        "commit-slice-dropped-while-written",
        _COMMIT,
        """
        - found.pins += 1  # until then the file has something older
          try:
              await write_array(self._image.file, found.host + 8 * low, words)
          except BaseException:
              found.touch(*before)
              raise
        - finally:
        -     found.pins -= 1
        """,
        "A slice is evicted and read again while its new content is on its way to the file.",
        ("integration/qcow2/test_cache.py",),
    ),
    Mutation(
        "commit-failed-release-forgets",
        _COMMIT,
        """
        + self._freed.pop()
          change = image.refcounts.change(part.first, part.length, -1)
          free = await self._drop(change)
        - self._freed.pop()
          if free is not None:
        """,
        "Clusters whose release was cancelled are leaked: the file system gets full.",
        _CANCELLED,
    ),
    Mutation(
        "commit-cancelled-slice-counts-as-written",
        _COMMIT,
        """
        - except BaseException:
        + except OSError:
              found.touch(*before)
              raise
        """,
        "Entries whose write was cancelled are never written again.",
        _CANCELLED,
        equivalent="A cancelled task waits for the write's end; then the error is raised instead.",
    ),
    Mutation(
        "commit-not-marked-dirty",
        _HEADER_FILE,
        """
          header.incompatible ^= bit
          try:
        -     async with self._turn:
        -         await self._write(_Doubt.FIELDS)
        +     if not dirty:
        +         async with self._turn:
        +             await self._write(_Doubt.FIELDS)
          except BaseException:
        """,
        "With lazy refcounts, a crash leaves wrong refcounts in an image that is marked clean.",
        ("integration/qcow2/test_writes_in_any_order.py",),
    ),
    Mutation(
        "commit-clean-before-its-refcounts",
        _COMMIT,
        """
          if image.header.incompatible & Incompatible.DIRTY:
        -     await image.file.flush()
              await image.header_file.set_dirty(False)
        """,
        "With lazy refcounts, a crash leaves wrong refcounts in an image that is marked clean.",
        ("integration/qcow2/test_writes_in_any_order.py",),
    ),
    Mutation(
        "commit-lazy-refcounts-without-the-mark",
        _COMMIT,
        """
        - if lazy and self._refcounts_dirty:
        -     await image.header_file.set_dirty(True)  # before the file's refcounts are wrong
          if not lazy or len(image.refcounts.blocks) > image.refcounts.limit:
        """,
        "With lazy refcounts, a crash leaves wrong refcounts in an image that is marked clean.",
        ("integration/qcow2/test_writes_in_any_order.py",),
    ),
    Mutation(
        "commit-l1-range-cut",
        _COMMIT,
        """
        - low, high = tables.l1_changes.low, tables.l1_changes.high
        + low, high = tables.l1_changes.low, tables.l1_changes.low + 1
        """,
        "Of two L1 entries that have changed, the second is never written.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_create.py"),
    ),
    Mutation(
        "reftable-moved-before-it-is-there",
        _COMMIT,
        """
              await write_array(image.file, offset, table.astype(">u8"))
        -     await image.file.flush()

          async def use_reftable(
        """,
        "After a crash the header refers to a refcount table that wasn't written.",
        _CRASH,
    ),
    Mutation(
        "dirty-range-of-the-last-change",
        f"{_QCOW2}/dirty.py",
        """
        - self.low, self.high = min(self.low, low), max(self.high, high)
        + self.low, self.high = min(self.low, low), high
        """,
        "Entries that changed before the last one are never written.",
        ("integration/qcow2/test_write.py",),
    ),
    Mutation(
        "dirty-slice-is-evicted",
        _TABLES,
        """
          for old in list(self.slices.values()):
        -     if old.dirty or old.pins:
        +     if old.pins:
                  continue
        """,
        "Entries that were not in the file yet get lost when the cache is cleaned.",
        ("integration/qcow2/test_cache.py",),
    ),
    Mutation(
        "dirty-slice-makes-room",
        _KEPT,
        """
        - if old is newest or old.dirty or old.pins:
        + if old is newest or old.pins:
              continue
        """,
        "Entries that were not in the file yet get lost when the cache is full.",
        ("integration/qcow2/test_write.py",),
    ),
    Mutation(
        "pinned-slice-makes-room",
        _KEPT,
        """
        - if old is newest or old.dirty or old.pins:
        + if old is newest or old.dirty:
              continue
        """,
        "A slice that a write is about to change is evicted: the change gets lost.",
        ("integration/qcow2/test_write.py",),
    ),
    Mutation(
        "slice-loaded-twice",
        _TABLES,
        """
          if number not in self._loading:
              break
        - ready: Completion[None] = Completion()
        - self._loading[number].append(ready)
        - await ready
        + break
        """,
        "Of two slices with the same entries one gets the changes, and the other stays.",
        ("integration/qcow2/test_cache.py",),
    ),
    Mutation(
        "moved-table-written-in-part",
        _TABLES,
        """
          found.host = host + self._place(number)
        - found.touch(0, 1 << self.slice_bits)
        """,
        "A table that was copied for a snapshot lacks the entries that didn't change.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "moved-table-loaded-in-part",
        _IMAGE,
        """
          if old:
        -     await self._load_whole_table(index)
        +     pass
        """,
        "A table that was copied for a snapshot lacks the slices that were not in the cache.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "new-table-has-garbage",
        f"{_QCOW2}/places.py",
        """
        - await self._file.pwrite_zeroes(offset, 1 << self._bits)
          self._known.add(offset >> self._bits)
        """,
        "An L2 table in a cluster that had data refers to random clusters.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "new-table-counts-as-synced",
        _IMAGE,
        """
        - self.commit.wrote()
          tables.set_l1(index, run.first << bits | COPIED)
        """,
        "After a crash an L1 entry refers to a table that wasn't zeroed.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "shared-table-changed-in-place",
        _IMAGE,
        """
        - if found is None or not word & COPIED:
        + if found is None:
              await self._new_table(index, word)
        """,
        "A write changes an L2 table that a snapshot shares.",
        _SNAPS,
    ),
    Mutation(
        "slices-of-another-publisher",
        _IMAGE,
        """
          for found in self.tables.slices.values():
        -     self.publisher.load(found)
        +     found.used = True
        """,
        "After a change of the graph, cached slices are not published.",
        ("integration/qcow2/test_node_changes.py",),
        equivalent="Requests for unpublished clusters go to the node: slower, and correct.",
    ),
    Mutation(
        "refcount-overflows",
        _REFCOUNTS,
        """
        - if (part == geometry.refcount_max).any():
        + if (part > geometry.refcount_max).any():
              raise os_error(errno.ERANGE)
        """,
        "The refcount of a cluster that many snapshots share becomes 0: it is reused.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "refcount-below-zero",
        _REFCOUNTS,
        """
        - if (part == 0).any():
        -     self.corrupt(f"Cluster {cluster:#x} is in use and has refcount 0")
        -     raise os_error(errno.EIO)
          part -= part.dtype.type(1)
        """,
        "A count that was too low becomes the highest one, and the fault is hidden.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "refcount-free-list-shifted",
        _REFCOUNTS,
        """
        - freed.append(np.flatnonzero(part == 0) + cluster)
        + freed.append(np.flatnonzero(part == 0) + first)
        """,
        "Of clusters in two refcount blocks the wrong ones are discarded in the file.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "refcount-block-dropped-while-dirty",
        _REFCOUNTS,
        """
        - for old in self.blocks.excess(self.limit, block):
        + for old in [each for each in self.blocks.values() if each is not block]:
        """,
        "Counts that were not in the file yet get lost: clusters in use are free.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "refcount-encoded-from-the-wrong-place",
        _REFCOUNTS,
        """
        - high = -(-block.high // per_sector) * per_sector
        + high = block.high // per_sector * per_sector or per_sector
        """,
        "The last counts that have changed are never written.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "refcount-not-in-the-block",
        _REFCOUNTS,
        """
        - block.touch(low, high)
        + if by > 0:
        +     block.touch(low, high)
        """,
        "Freed clusters stay in use in the file: it gets full.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "fresh-below-the-high-water-mark",
        _ALLOCATOR,
        """
        - first >= self.high_water
        + first + count > self.high_water
          and self._image.grows_with_zeroes
        """,
        "The rest of a new cluster shows the former content of the host cluster.",
        ("integration/qcow2/test_reuse.py",),
    ),
    Mutation(
        "every-cluster-is-fresh",
        _ALLOCATOR,
        """
          fresh = (
        -     first >= self.high_water
        -     and self._image.grows_with_zeroes
        +     self._image.grows_with_zeroes
        """,
        "The rest of a new cluster shows the former content of the host cluster.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "fresh-one-cluster-too-early",
        _ALLOCATOR,
        """
        - first >= self.high_water
        + first + 1 >= self.high_water
          and self._image.grows_with_zeroes
        """,
        "The rest of a new cluster shows the former content of the host cluster.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "high-water-mark-stays",
        _ALLOCATOR,
        """
              and (first + count) << geometry.cluster_bits <= self._image.file.node.size
          )
        - self.high_water = max(self.high_water, first + count)
        """,
        "A cluster that was used, freed and taken again counts as fresh.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "trim-cuts-data-off",
        _ALLOCATOR,
        """
          self._grown = False
        - end = self.high_water << self._geometry.cluster_bits
          if image.file.node.size > end:
        + end = self.hint << self._geometry.cluster_bits
        """,
        "Closing cuts off data behind the first free cluster.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_zero.py"),
    ),
    Mutation(
        "fresh-past-the-end-of-the-file",
        _ALLOCATOR,
        """
          and self._image.grows_with_zeroes
        - and (first + count) << geometry.cluster_bits <= self._image.file.node.size
        """,
        "In a file that can't grow, the rest of a new cluster is not zeroes.",
        ("integration/qcow2/test_full.py", "integration/qcow2/test_write.py"),
        equivalent="Only files say that they grow with zeroes, and they are long enough by then.",
    ),
    Mutation(
        "failed-table-keeps-its-cluster-and-the-old-one-is-freed",
        _IMAGE,
        """
          except BaseException:
              self.overlap.metadata_removed(run.first, 1)
        -     await self.allocator.free(run)
        +     self.commit.free(old)
              raise
        """,
        "A table that could not be copied is freed while the snapshot still refers to it.",
        ("integration/qcow2/test_full.py", "integration/qcow2/test_write_errors.py"),
    ),
    Mutation(
        "freed-places-are-not-looked-at",
        _ALLOCATOR,
        """
        - self.hint = min(self.hint, int(clusters[0]))
        + self.hint = max(self.hint, int(clusters[0]))
        """,
        "Freed clusters are never reused: the file grows unnecessarily.",
        ("integration/qcow2/test_reuse.py",),
    ),
    Mutation(
        "run-over-a-used-cluster",
        _ALLOCATOR,
        """
          if len(used):
        -     return length + int(used[0]), missing
        +     return count + len(missing), missing
        """,
        "A run of clusters at a refcount block's end has one that is in use.",
        ("integration/qcow2/test_reuse.py",),
    ),
    Mutation(
        "table-without-its-old-entries",
        _ALLOCATOR,
        """
        - table[: len(refcounts.table)] = refcounts.table
          new_blocks = []
        + table[: len(refcounts.table) - 1] = refcounts.table[:-1]
        """,
        "A refcount block is lost when the table grows: its clusters count as free.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_create.py"),
    ),
    Mutation(
        "header-forgets-unknown-extensions",
        _HEADER,
        """
        - return found + header.unknown_extensions
        + return found
        """,
        "Rewriting the header loses data that another program keeps there.",
        ("tests/block/qcow2/test_header.py",),
    ),
    Mutation(
        "header-forgets-unknown-fields",
        _HEADER,
        """
          else:
        -     front += header.unknown_fields
        +     front += bytes(len(header.unknown_fields))
        """,
        "Rewriting the header loses data that another program keeps there.",
        ("integration/qcow2/test_header.py", "tests/block/qcow2/test_header.py"),
    ),
    Mutation(
        "header-counts-unknown-fields-twice",
        _HEADER,
        """
        - length, name = _length(header), header.backing_file
        + length, name = _length(header) + len(header.unknown_fields), header.backing_file
        """,
        "After a rewrite the header refers to the middle of the backing file name.",
        ("integration/qcow2/test_header.py", "tests/block/qcow2/test_header.py"),
    ),
    Mutation(
        "header-forgets-the-backing-format",
        _HEADER,
        """
        - if header.backing_format is not None:
        + if header.backing_format is not None and header.data_file is None:
              found.append((layout.EXT_BACKING_FORMAT, header.backing_format))
        """,
        "An image of which the header is rewritten probes its backing file's format.",
        ("tests/block/qcow2/test_header.py",),
    ),
    Mutation(
        "unknown-autoclear-bits-are-kept",
        _IMAGE,
        """
          known = parsed.autoclear & int(Autoclear.ALL)
        - await self.header_file.rewrite(autoclear=known, stale_bitmaps=False)
        + parsed.autoclear, parsed.stale_bitmaps = known, False
        """,
        "Another program trusts its own data in an image that we have changed.",
        ("integration/qcow2/test_header.py",),
    ),
    Mutation(
        "closed-with-tables-in-memory",
        _LIFECYCLE,
        """
              await try_to_tidy_up(image)
        - await image.commit.close()
        """,
        "Writes since the last flush are lost when the image is closed.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_node_changes.py"),
    ),
    Mutation(
        "flush-without-the-lock",
        _FLUSH,
        """
        - async with image.lock:
        -     await self._write_changes()
        -     volatile = image.publisher.volatile
        -     volatile.begin()
        + await self._write_changes()
        + volatile = image.publisher.volatile
        + volatile.begin()
        """,
        "A flush that comes while another one writes tables is acknowledged before that is done.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_writes_in_any_order.py"),
    ),
    Mutation(
        "flush-of-the-tables-only",
        _FLUSH,
        """
          try:
        -     await image.commit.flush_files()
        +     pass
          except BaseException:
        """,
        "A flush leaves the metadata that it has written in a cache.",
        _CRASH,
    ),
    Mutation(
        "flush-error-of-the-tables-ignored",
        _FLUSH,
        """
        - await image.commit.write()
        + with contextlib.suppress(OSError):
        +     await image.commit.write()
        ...
        - from typing import TYPE_CHECKING
        + import contextlib
        + from typing import TYPE_CHECKING
        """,
        "A flush whose tables could not be written is acknowledged.",
        ("integration/qcow2/test_write_errors.py",),
    ),
)
