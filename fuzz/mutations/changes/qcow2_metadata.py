# SPDX-License-Identifier: Apache-2.0
"""qcow2: tables and refcounts, the order in which they get to the file, snapshots, resizing."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_QCOW2 = "vhostblk/block/drivers/qcow2"
_COMMIT = f"{_QCOW2}/commit.py"
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
_LIFECYCLE = f"{_QCOW2}/lifecycle.py"
_NODE = f"{_QCOW2}/node.py"
_PUBLISH = f"{_QCOW2}/publish.py"
_FLUSH = f"{_QCOW2}/flush.py"

_CRASH = ("integration/qcow2/test_writes_in_any_order.py",)
_REFS = ("tests/block/qcow2/test_refcounts.py", "integration/qcow2/test_write.py",
         "integration/qcow2/test_writes_in_any_order.py")  # fmt: skip
_SNAPS = ("integration/qcow2/test_snapshots.py", "integration/qcow2/test_writes_in_any_order.py")
_BITS = ("integration/qcow2/test_bitmaps.py",)
_SIZES = ("integration/qcow2/test_write.py", "integration/qcow2/test_node_changes.py")
_CORRUPTION = ("integration/qcow2/test_corruption.py", "integration/qcow2/test_opening.py")
_BECOMING = ("integration/qcow2/test_becoming_metadata.py",)

MUTATIONS = (
    Mutation(
        "commit-tables-before-refcounts",
        _COMMIT,
        """
        - if not lazy or len(image.refcounts.blocks) > image.refcounts.limit:
        -     await self._write_refcounts()
        - await self._write_tables()
        + await self._write_tables()
        + if not lazy or len(image.refcounts.blocks) > image.refcounts.limit:
        +     await self._write_refcounts()
        """,
        "After a crash a cluster is free that an entry refers to.",
        _CRASH,
    ),
    Mutation(
        "commit-refcounts-and-tables-at-once",
        _COMMIT,
        """
          if dirty:
        -     self.unsynced = True
              await run_all([self._write_block(block) for block in dirty])
        """,
        "After a crash a cluster is free that an entry refers to.",
        _CRASH,
        equivalent="Whoever takes clusters writes data to them, and says so.",
    ),
    Mutation(
        "commit-reftable-before-its-blocks",
        _COMMIT,
        """
          if refcounts.dirty_entries:
        -     await image.file.flush()
              for index in sorted(refcounts.dirty_entries):
        """,
        "After a crash the refcount table leads to a block that isn't there.",
        _CRASH,
    ),
    Mutation(
        "commit-tables-at-once-with-data",
        _COMMIT,
        """
          if dirty:
        -     if self.unsynced:
        -         await self.sync()
              self.unsynced = True
        """,
        "After a crash entries refer to clusters without data, and without refcounts.",
        _CRASH,
    ),
    Mutation(
        "commit-l1-at-once-with-l2",
        _COMMIT,
        """
          if tables.l1_changes.dirty:
        -     if self.unsynced:
        -         await self.sync()
              low, high = tables.l1_changes.low, tables.l1_changes.high
        """,
        "After a crash an L1 entry leads to a table that isn't there.",
        _CRASH,
    ),
    Mutation(
        "commit-written-tables-count-as-synced",
        _COMMIT,
        """
        - self.unsynced = True
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
        - if self.unsynced:
        -     await self.sync()
          await image.publisher.settle()
        """,
        "After a crash a cluster is free, and has other data, that the file refers to.",
        _CRASH,
    ),
    Mutation(
        "commit-sync-forgets-what-came-meanwhile",
        _COMMIT,
        """
        - self.unsynced = False  # what is written from now on is not covered
          try:
              await self.flush_files()
        +     self.unsynced = False
          except BaseException:
        """,
        "Data that was written during a flush counts as synced: entries get to the file before it.",
        _CRASH,
        equivalent="Who writes without the lock overwrites: no entry relies on that.",
    ),
    Mutation(
        "commit-failed-sync-counts",
        _COMMIT,
        """
          except BaseException:
        -     self.unsynced = True
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
        ("integration/qcow2/test_write.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "commit-failed-release-forgets",
        _COMMIT,
        """
        - freed, self._freed, self._freed_clusters = self._freed, [], 0
          for run in freed:
        ...
          image = self._image
        + freed, self._freed, self._freed_clusters = self._freed, [], 0
          if self.unsynced:
              await self.sync()
          await image.publisher.settle()
        """,
        "Clusters that could not be given up leak: the file system gets full.",
        ("integration/qcow2/test_write_errors.py",),
    ),
    Mutation(
        "commit-not-marked-dirty",
        _COMMIT,
        """
          try:
              await image.write_features()
        -     await image.file.flush()
          except OSError:
              image.header.incompatible &= ~int(Incompatible.DIRTY)
        """,
        "With lazy refcounts, a crash leaves wrong refcounts in an image that says it is clean.",
        ("integration/qcow2/test_writes_in_any_order.py",),
        equivalent="Tables are written after a flush, as data has been written before.",
    ),
    Mutation(
        "commit-clean-before-its-refcounts",
        _COMMIT,
        """
          if image.header.incompatible & Incompatible.DIRTY:
        -     await image.file.flush()
              image.header.incompatible &= ~int(Incompatible.DIRTY)
        """,
        "With lazy refcounts, a crash leaves wrong refcounts in an image that says it is clean.",
        ("integration/qcow2/test_writes_in_any_order.py",),
    ),
    Mutation(
        "commit-lazy-refcounts-without-the-mark",
        _COMMIT,
        """
        - if lazy and self._refcounts_dirty:
        -     await image.header_file.set_dirty(True)  # before they are wrong in the file
          if not lazy or len(image.refcounts.blocks) > image.refcounts.limit:
        """,
        "With lazy refcounts, a crash leaves wrong refcounts in an image that says it is clean.",
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
        "After a crash the header leads to a refcount table that isn't there.",
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
        ("integration/qcow2/test_write.py", "integration/qcow2/test_express.py"),
    ),
    Mutation(
        "dirty-slice-makes-room",
        _TABLES,
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
        _TABLES,
        """
        - if old is newest or old.dirty or old.pins:
        + if old is newest or old.dirty:
              continue
        """,
        "A slice that a write goes on to change is evicted: the change gets lost.",
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
        ("integration/qcow2/test_write.py", "integration/qcow2/test_read.py"),
    ),
    Mutation(
        "moved-table-written-in-part",
        _TABLES,
        """
          found.host = host + self._place(number)
        - found.touch(0, 1 << self.slice_bits)
        """,
        "A table that was copied for a snapshot lacks the entries that didn't change.",
        _SNAPS,
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
        _SNAPS,
    ),
    Mutation(
        "new-table-has-garbage",
        f"{_QCOW2}/places.py",
        """
        - await self._file.pwrite_zeroes(offset, 1 << self._bits)
          self._known.add(offset >> self._bits)
        """,
        "An L2 table in a cluster that had data leads anywhere.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "new-table-counts-as-synced",
        _IMAGE,
        """
        - self.commit.unsynced = True
          tables.set_l1(index, run.first << bits | COPIED)
        """,
        "After a crash an L1 entry leads to a table that isn't zeroed yet.",
        _CRASH,
    ),
    Mutation(
        "shared-table-changed-in-place",
        _IMAGE,
        """
        - if found is None or not word & COPIED:
        + if found is None:
              await self._new_table(index, word)
        """,
        "A write changes an L2 table that a snapshot has, too.",
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
        "After a change of the graph, cached slices are published by nobody.",
        ("integration/qcow2/test_node_changes.py",),
        equivalent="What isn't published is asked: it is slower, and right.",
    ),
    Mutation(
        "refcount-overflows",
        _REFCOUNTS,
        """
        - if (part == geometry.refcount_max).any():
        + if (part > geometry.refcount_max).any():
              raise os_error(errno.ERANGE)
        """,
        "The count of a cluster that many snapshots have becomes 0: it gets another use.",
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
        - freed += (np.flatnonzero(part == 0) + cluster).tolist()
        + freed += (np.flatnonzero(part == 0) + first).tolist()
        """,
        "Of clusters in two refcount blocks the wrong ones are discarded in the file.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "refcount-block-dropped-while-dirty",
        _REFCOUNTS,
        """
        - if old is block or old.dirty:
        + if old is block:
              continue
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
        "Clusters that were given up stay in use in the file: it gets full.",
        ("tests/block/qcow2/test_counting.py",),
    ),
    Mutation(
        "cluster-0-is-given-away",
        _ALLOCATOR,
        """
    - if first == 0:  # the header's, whatever its refcount says; entries with 0 refer to nothing
    + if first < 0:  # the header's, whatever its refcount says; entries with 0 refer to nothing
        """,
        "Data is written over the header.",
        _CORRUPTION,
    ),
    Mutation(
        "fresh-below-the-high-water-mark",
        _ALLOCATOR,
        """
        - first >= self.high_water
        + first + count > self.high_water
          and self._image.grows_with_zeroes
        """,
        "What nobody writes of a new cluster shows what the host cluster had before.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_bursts.py"),
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
        "Closing cuts off what lies behind the first free cluster.",
        ("integration/qcow2/test_write.py", "integration/qcow2/test_zero.py"),
    ),
    Mutation(
        "fresh-past-the-end-of-the-file",
        _ALLOCATOR,
        """
          and self._image.grows_with_zeroes
        - and (first + count) << geometry.cluster_bits <= self._image.file.node.size
        """,
        "On what can't be made longer, what nobody writes of a new cluster is not zeroes.",
        ("integration/qcow2/test_full.py", "integration/qcow2/test_write.py"),
    ),
    Mutation(
        "table-without-storage",
        _IMAGE,
        """
          if not found.placed:
        -     await self.places.ensure(found.host)
              found.placed = True
        """,
        "On a full file system nothing leads to data that has been acknowledged.",
        ("integration/qcow2/test_full.py",),
    ),
    Mutation(
        "refcounts-without-storage",
        _ALLOCATOR,
        """
          await image.become_metadata(own, 1, "refcount_block")
        - await image.places.make(own << geometry.cluster_bits)
        """,
        "On a full file system clusters in use count as free.",
        ("integration/qcow2/test_full.py",),
    ),
    Mutation(
        "discarded-table-keeps-its-storage",
        _COMMIT,
        """
        - self._image.places.gone(first, count)
          await self._discard(self._image.file, first, count)
        """,
        "A cluster that was discarded and has become a table again has no storage.",
        ("integration/qcow2/test_full.py",),
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
        "A table that could not be copied is given up while the snapshot still refers to it.",
        ("integration/qcow2/test_full.py", "integration/qcow2/test_write_errors.py"),
    ),
    Mutation(
        "allocation-over-metadata",
        _ALLOCATOR,
        """
              raise os_error(errno.EFBIG)
        - self._image.overlap.check_allocation(first, count)
        """,
        "Data is written over tables that a refcount says are free.",
        _CORRUPTION,
    ),
    Mutation(
        "freed-places-are-not-looked-at",
        _ALLOCATOR,
        """
        - self.hint = min(self.hint, first)
        + self.hint = max(self.hint, first)
        """,
        "Clusters that were given up are never taken again: the file grows without need.",
        ("tests/block/qcow2/test_refcounts.py", "integration/qcow2/test_write.py"),
    ),
    Mutation(
        "run-over-a-used-cluster",
        _ALLOCATOR,
        """
          used = np.flatnonzero(values)
        - more = int(used[0]) if len(used) else len(values)
        + more = int(used[0]) + 1 if len(used) else len(values)
        """,
        "A run of clusters at a refcount block's end has one that is in use.",
        ("tests/block/qcow2/test_refcounts.py", "integration/qcow2/test_write.py"),
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
        "overlap-forgets-new-tables",
        _OVERLAP,
        """
          for cluster in range(first, first + count):
              self._added[cluster] = what
        - self._all = None
        """,
        "An image that says that data lies on a new table has it written over.",
        _CORRUPTION,
    ),
    Mutation(
        "published-entry-outlives-its-check",
        _PUBLISH,
        """
          self.volatile.mark_loaded(found.number, mapped)
        - self._referred.note(mapped)
        """,
        "An image that says that data lies on a free cluster has it written over a new table.",
        _BECOMING,
    ),
    Mutation(
        "table-written-before-what-is-in-flight-has-ended",
        _IMAGE,
        """
              first, count
          ):
        -     await self.publisher.settle()
        +     pass
        """,
        "In such an image, a write that is in flight goes over the new table.",
        _BECOMING,
    ),
    Mutation(
        "overlap-of-one-cluster",
        _OVERLAP,
        """
        - self._check(first, (offset + length - 1 >> bits) - first + 1)
        + self._check(first, 1)
        """,
        "Data is written over metadata behind its first cluster.",
        _CORRUPTION,
        equivalent="Data is checked a cluster at a time, by the one caller there is.",
    ),
    Mutation(
        "overlap-ends-early",
        _OVERLAP,
        """
        - if place == len(clusters) or int(clusters[place]) >= first + count:
        + if place == len(clusters) or int(clusters[place]) > first:
              return
          found = self.structure_at(first, count)
        """,
        "A run of clusters that has metadata in it is taken for data.",
        _CORRUPTION,
    ),
    Mutation(
        "overlap-without-tables-of-snapshots",
        _OVERLAP,
        """
    - self.incomplete = bool("inactive_l2" in image.settings.overlap and image.snapshots.entries)
    + self.incomplete = False
        """,
        "With overlap-check=all, data is written over a snapshot's tables.",
        _CORRUPTION,
    ),
    Mutation(
        "resize-header-before-the-tables",
        _RESIZE,
        """
        - await image.commit.write()
        - await image.commit.sync()
          await write_bytes(image.file, _SIZE_FIELD, size.to_bytes(8, "big"))
        """,
        "After a crash the disk is larger and its tables don't reach so far.",
        ("integration/qcow2/test_writes_in_any_order.py", *_SIZES),
    ),
    Mutation(
        "resize-l1-pointer-before-the-table",
        _RESIZE,
        """
          await image.commit.write()  # its refcounts
        - await image.commit.sync()
          pointer = entries.to_bytes(4, "big") + (run.first << bits).to_bytes(8, "big")
        """,
        "After a crash the header leads to an L1 table that isn't there.",
        ("integration/qcow2/test_writes_in_any_order.py", *_SIZES),
    ),
    Mutation(
        "resize-l1-freed-before-the-header",
        _RESIZE,
        """
          await write_bytes(image.file, _L1_FIELDS, pointer)
        - await image.file.flush()
          old, old_clusters = header.l1_offset >> bits, image.geometry.clusters(8 * header.l1_size)
        """,
        "After a crash the header leads to the former L1 table, which has another use.",
        ("integration/qcow2/test_writes_in_any_order.py", *_SIZES),
        equivalent="The length is written after a flush, and before anything gets the old place.",
    ),
    Mutation(
        "resize-shows-the-backing-file",
        _RESIZE,
        """
        - if start < stop:
        + if start + image.geometry.cluster_size < stop:
        """,
        "A disk that grows by a cluster shows what a longer backing file has there.",
        (*_SIZES, "integration/qcow2/test_external_snapshots.py"),
    ),
    Mutation(
        "resize-shows-the-rest-of-the-last-cluster",
        _NODE,
        """
        - if old_size < border and not await image.zeroer.reads_zero(old_size, border - old_size):
        + if border < old_size:
              await self._zero_bytes(old_size, border)
        """,
        "A disk that grows shows what lay behind its end in its last cluster.",
        (*_SIZES, "integration/qcow2/test_external_snapshots.py"),
    ),
    Mutation(
        "resize-keeps-clusters-past-the-end",
        _RESIZE,
        """
        - first = geometry.clusters(size)
        + first = geometry.clusters(size) + 1
          last = geometry.clusters(image.size)
        """,
        "A disk that shrinks and grows again shows what it had.",
        _SIZES,
    ),
    Mutation(
        "resize-takes-the-last-cluster",
        _RESIZE,
        """
        - first = geometry.clusters(size)
        + first = size // geometry.cluster_size
          last = geometry.clusters(image.size)
        """,
        "A disk that shrinks to the middle of a cluster loses it.",
        _SIZES,
    ),
    Mutation(
        "snapshot-shares-without-references",
        _SNAPSHOTS,
        """
          await write_array(image.file, run.first << bits, image.tables.l1.astype(">u8"))
        - await change_refcounts(image, clusters, weights, check_only=False)
          await image.commit.write()
        """,
        "What only a snapshot has is free.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-references-after-the-table",
        _SNAPSHOTS,
        """
        - await image.commit.write()
        - await image.commit.sync()
          image.tables.clear()
          await clear_copied(image, image.tables.l1)
        """,
        "After a crash a cluster that a snapshot has counts one reference.",
        _SNAPS,
        equivalent="Both are on the disk before the snapshot is listed.",
    ),
    Mutation(
        "snapshot-clusters-stay-writable",
        _SNAPSHOTS,
        """
        - await clear_copied(image, image.tables.l1)
          image.tables.l1_changes.touch(0, len(image.tables.l1))
        """,
        "A write after a snapshot changes the snapshot.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-keeps-cached-tables",
        _SNAPSHOTS,
        """
        - image.tables.clear()
          await clear_copied(image, image.tables.l1)
        """,
        "Cached entries still say that clusters may be written in place.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-listed-before-flags-are-cleared",
        _SNAPSHOTS,
        """
          image.tables.l1_changes.touch(0, len(image.tables.l1))
        - await image.commit.write()
        - await image.commit.sync()
          snapshot = Snapshot(
        """,
        "After a crash the disk writes in place what the snapshot has.",
        _SNAPS,
        equivalent="Writing the snapshot table begins with the same writes and flush.",
    ),
    Mutation(
        "snapshot-table-before-its-clusters",
        _SNAPSHOTS,
        """
          image.commit.unsynced = True
          await image.commit.write()
        - await image.commit.sync()
          pointer = len(entries).to_bytes(4, "big") + offset.to_bytes(8, "big")
        """,
        "After a crash the header leads to a snapshot table that isn't there.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-table-freed-before-the-header",
        _SNAPSHOTS,
        """
          await write_bytes(image.file, _NB_SNAPSHOTS, pointer)
        - await image.file.flush()
        """,
        "After a crash the header leads to the former snapshot table, which has another use.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-deleted-before-the-table",
        _SNAPSHOTS,
        """
    - await _write_table(image, [each for each in image.snapshots.entries if each is not snapshot])
      await image.publisher.settle()
      await change_refcounts(image, clusters, -weights, check_only=False)
    + await _write_table(image, [each for each in image.snapshots.entries if each is not snapshot])
        """,
        "After a crash a snapshot is there whose clusters are free.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-deleted-keeps-the-old-entries",
        _SNAPSHOTS,
        """
          found, counts = references.counts()
        - image.tables.clear()
          await check_flags(image, found[counts == 1], CheckResult(), repair=True)
        """,
        "Cached tables take back what was written to the file.",
        _SNAPS,
    ),
    Mutation(
        "apply-before-the-copy-is-synced",
        _APPLY,
        """
          image.commit.unsynced = True
          await image.commit.write()
        - await image.commit.sync()
        """,
        "After a crash the header leads to an L1 table that isn't there.",
        _SNAPS,
    ),
    Mutation(
        "apply-gives-up-before-the-switch",
        _APPLY,
        """
          await write_bytes(image.file, _SIZE_FIELD, fields)
        - await image.file.flush()
          await image.publisher.settle()
        """,
        "After a crash the header leads to what was given up.",
        _SNAPS,
    ),
    Mutation(
        "apply-keeps-cached-tables",
        _APPLY,
        """
          await image.publisher.settle()
        - image.tables.clear()
          header.size, header.l1_size, header.l1_offset = size, len(table), offset
        """,
        "A disk that went back to a snapshot reads as before.",
        _SNAPS,
    ),
    Mutation(
        "apply-writes-into-the-snapshot",
        _APPLY,
        """
          try:
        -     await clear_copied(image, table)
              await write_array(image.file, run.first << geometry.cluster_bits, table.astype(">u8"))
        """,
        "A write after going back to a snapshot changes the snapshot.",
        _SNAPS,
    ),
    Mutation(
        "bitmap-mark-without-its-flush",
        _BITMAPS,
        """
          await write_bytes(image.file, extension.offset, encode_directory(marked))
        - await image.file.flush()
          self.entries = marked
        """,
        "After a crash a bitmap counts as valid that lacks what was written.",
        _BITS,
    ),
    Mutation(
        "bitmap-directory-before-the-bitmaps",
        _BITMAPS,
        """
          image.commit.unsynced = True
          await image.commit.write()
        - await image.commit.sync()
          taken.clear()  # whether the file refers to them is not known from here on
        """,
        "After a crash a directory counts as valid whose bitmaps aren't there.",
        _BITS,
    ),
    Mutation(
        "bitmap-of-the-image-not-recording",
        _LIFECYCLE,
        """
          self.bitmaps = bitmaps
        - node_bitmaps.refresh(self)
        """,
        "A bitmap that an image keeps lacks what is written after opening.",
        _BITS,
    ),
    Mutation(
        "bitmap-in-use-not-marked-again",
        _LIFECYCLE,
        """
              async with image.lock:
        -         await image.bitmaps.mark_in_use()
        +         pass
          except (OSError, BlockError) as error:
        """,
        "After an inactivation that failed a crash leaves bitmaps that lack what was written.",
        _BITS,
    ),
    Mutation(
        "bitmap-stored-though-inconsistent",
        _BITMAPS,
        """
        - if each.persistent and not each.inconsistent and not each.read_only
        + if each.persistent and not each.read_only
        """,
        "A bitmap whose content is unknown is stored as valid.",
        _BITS,
    ),
    Mutation(
        "bitmap-loaded-though-in-use",
        _BITMAPS,
        """
        - inconsistent=entry.in_use,
        + inconsistent=entry.in_use and not entry.records,
        """,
        "A bitmap that was in use when the machine crashed counts as valid.",
        _BITS,
    ),
    Mutation(
        "bitmap-store-skips-full-clusters",
        _BITMAPS,
        """
        - places = np.flatnonzero(part.any(axis=1))
        + places = np.flatnonzero(part.any(axis=1) & ~part.all(axis=1))
          if not len(places):
        """,
        "A bitmap with long runs of changes is stored without them.",
        _BITS,
    ),
    Mutation(
        "bitmaps-lost-while-giving-up",
        _LIFECYCLE,
        """
          except OSError as error:
        -     failed = error  # all else is put in order nevertheless
        +     logger.debug("%s", error)
        """,
        "Bitmaps that could not be stored are lost, and nobody knows.",
        _BITS,
    ),
    Mutation(
        "header-forgets-unknown-extensions",
        _HEADER,
        """
        - return found + header.unknown_extensions
        + return found
        """,
        "Rewriting the header loses what another program keeps there.",
        ("tests/block/qcow2/test_header.py",),
    ),
    Mutation(
        "header-forgets-unknown-fields",
        _HEADER,
        """
        - unknown = b"" if is_v2 else header.unknown_fields
        + unknown = b""
        """,
        "Rewriting the header loses what another program keeps there.",
        ("tests/block/qcow2/test_header.py",),
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
          parsed.autoclear &= int(Autoclear.ALL)
          parsed.stale_bitmaps = False
        - await self.update_header()
        """,
        "Another program trusts what it keeps in an image that we have changed.",
        ("integration/qcow2/test_opening.py", *_BITS),
    ),
    Mutation(
        "corrupt-image-is-written",
        _LIFECYCLE,
        """
        - if parsed.incompatible & Incompatible.CORRUPT and not node.read_only:
        -     raise BlockError("qcow2: Image is corrupt; cannot be opened read/write")
          await open_data_file(node, graph, parsed)
        """,
        "An image that contradicts itself is changed.",
        _CORRUPTION,
    ),
    Mutation(
        "corrupt-image-goes-on",
        _IMAGE,
        """
          logger.error("qcow2: Marking image as corrupt: %s: %s", name, text)
        - self.unusable = True
          self.writable = False
        """,
        "An image that contradicts itself is changed on.",
        _CORRUPTION,
    ),
    Mutation(
        "corrupt-bit-not-flushed",
        _IMAGE,
        """
              await self.write_features()
        -     await self.file.flush()
          except OSError as error:
        """,
        "After a crash a corrupt image is opened for writing again.",
        _CORRUPTION,
    ),
    Mutation(
        "corrupt-l2-offset",
        f"{_QCOW2}/read.py",
        """
        - if table & (image.geometry.cluster_size - 1):
        + if table & 511:
              image.corruption(f"L2 table offset {table:#x} unaligned (L1 index: {in_hex(index)})")
        """,
        "A table in the middle of two clusters is changed, and the second one overwritten.",
        _CORRUPTION,
    ),
    Mutation(
        "closed-with-tables-in-memory",
        _LIFECYCLE,
        """
                  self._lock_bitmaps(locked=True)
        -     await image.commit.close()
        """,
        "What was written since the last flush is lost when the image is closed.",
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
        "A flush that comes while another one writes tables is acknowledged before it.",
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
        "A flush leaves what it has written in a cache.",
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
        - import asyncio
        + import asyncio
        + import contextlib
        """,
        "A flush whose tables could not be written is acknowledged.",
        ("integration/qcow2/test_write_errors.py",),
    ),
    Mutation(
        "write-errors-of-a-corrupt-image",
        _NODE,
        """
          host = publisher.overwritable(offset, iov.nbytes)
          if host < 0:
        -     image.check_usable()
              await image.writer.write(offset, iov)
        """,
        "A corrupt image is written on.",
        _CORRUPTION,
        equivalent="The writer looks itself, before it does anything.",
    ),
)
