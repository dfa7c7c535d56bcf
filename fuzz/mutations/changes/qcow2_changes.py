# SPDX-License-Identifier: Apache-2.0
"""qcow2: commands that change an image's structures: sizes, snapshots, bitmaps."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_QCOW2 = "vhostblk/block/drivers/qcow2"
_COMMIT = f"{_QCOW2}/commit.py"
_HEADER_FILE = f"{_QCOW2}/header_file.py"
_RESIZE = f"{_QCOW2}/resize.py"
_SHRINK = f"{_QCOW2}/shrink.py"
_SHRUNK = ("integration/qcow2/test_shrink.py",)
_SNAPSHOTS = f"{_QCOW2}/snapshot_changes.py"
_APPLY = f"{_QCOW2}/snapshot_apply.py"
_BITMAPS = f"{_QCOW2}/bitmap_store.py"
_LIFECYCLE = f"{_QCOW2}/lifecycle.py"

_ALL_OR_NOTHING = "integration/qcow2/test_all_or_nothing.py"
_CRASH = (f"{_ALL_OR_NOTHING}::test_a_crash_leaves_the_old_or_the_new",)
_FAILURE = (f"{_ALL_OR_NOTHING}::test_a_request_that_fails_leaves_the_old",)
_CANCELLED = (f"{_ALL_OR_NOTHING}::test_a_task_that_is_cancelled_leaves_the_old_or_the_new",)
_SNAPS = ("integration/qcow2/test_order.py", "integration/qcow2/test_snapshots.py", *_CRASH)
_BITS = ("integration/qcow2/test_bitmaps.py",)

MUTATIONS = (
    Mutation(
        "header-change-not-flushed",
        _HEADER_FILE,
        """
          await write_bytes(self._image.file, offset, data)
        - await self._image.file.flush()
          if self._doubt is what:
        """,
        "Clusters of the former header are reused before the new header is written.",
        _CRASH,
    ),
    Mutation(
        "header-in-doubt-not-noted",
        _HEADER_FILE,
        """
        - self._doubt = max(self._doubt, what)
          await write_bytes(self._image.file, offset, data)
        """,
        "After a failed change, clusters are reused that the file's header may refer to.",
        _FAILURE,
    ),
    Mutation(
        "header-in-doubt-not-written-again",
        _COMMIT,
        """
          image.check_usable()
        - await image.header_file.confirm()
        """,
        "After a failed change, clusters are reused that the file's header may refer to.",
        _FAILURE,
    ),
    Mutation(
        "header-in-doubt-is-no-change",
        _COMMIT,
        """
        - image.header_file.in_doubt
        - or self._freed
        + self._freed
          or self._freed_many
        """,
        "After a flush, the file still has a header that differs from the one in memory.",
        _FAILURE,
    ),
    Mutation(
        "header-in-memory-keeps-what-failed",
        _HEADER_FILE,
        """
              async with self._turn:
                  await self._write(what)
          except BaseException:
        -     self._set(former)
              raise
        """,
        "The header in memory refers to clusters that have been freed.",
        _FAILURE,
    ),
    Mutation(
        "header-in-memory-keeps-what-was-cancelled",
        _HEADER_FILE,
        """
              async with self._turn:
                  await self._write(what)
        - except BaseException:
        + except OSError:
              self._set(former)
              raise
        """,
        "The header in memory refers to clusters that have been freed.",
        _CANCELLED,
    ),
    Mutation(
        "reftable-of-the-former-header",
        _HEADER_FILE,
        """
        - self._set(members)
        - self._doubt = max(self._doubt, _Doubt.FIELDS)
        - await self.confirm()
        + await self._try(_Doubt.FIELDS, members)
        """,
        "Refcounts are written to a table that the file's header may not refer to.",
        _FAILURE,
    ),
    Mutation(
        "resize-header-before-the-tables",
        _RESIZE,
        """
        - await image.commit.write()
        - await image.commit.sync()
          await image.header_file.change(size=size)
        """,
        "After a crash the disk is larger than its tables.",
        _CRASH,
    ),
    Mutation(
        "resize-header-before-the-zeroes-are-synced",
        _RESIZE,
        """
          await image.commit.write()
        - await image.commit.sync()
          await image.header_file.change(size=size)
        """,
        "After a crash the disk's new part shows the data of a longer backing file.",
        _CRASH,
    ),
    Mutation(
        "resize-l1-pointer-before-the-table",
        _RESIZE,
        """
        - await image.commit.sync()
          await image.header_file.change(l1_offset=offset, l1_size=entries)
        """,
        "After a crash the header refers to an L1 table that wasn't written.",
        _CRASH,
    ),
    Mutation(
        "resize-l1-without-its-refcounts",
        _RESIZE,
        """
          image.commit.wrote()
        - await image.commit.write()  # the new table's refcounts, and the L2 tables
          await image.commit.sync()
          await image.header_file.change(l1_offset=offset, l1_size=entries)
        """,
        "After a crash the L1 table is in a cluster that is free.",
        _CRASH,
    ),
    Mutation(
        "resize-l1-written-behind-the-header",
        _RESIZE,
        """
        - await write_array(image.file, offset, table.astype(">u8"))
          image.commit.wrote()
          await image.commit.write()  # the new table's refcounts, and the L2 tables
          await image.commit.sync()
          await image.header_file.change(l1_offset=offset, l1_size=entries)
        + await write_array(image.file, offset, table.astype(">u8"))
        """,
        "After a crash the header refers to an L1 table that wasn't written.",
        _CRASH,
    ),
    Mutation(
        "resize-l1-freed-at-once",
        _RESIZE,
        """
          if old_clusters and old:
        -     image.commit.free(old >> geometry.cluster_bits, old_clusters)
        +     await image.refcounts.change(old >> geometry.cluster_bits, old_clusters, -1)
        """,
        "After a crash the header refers to the former L1 table, whose clusters are reused.",
        _CRASH,
        equivalent="By then the file's header refers to the new table, on stable storage.",
    ),
    Mutation(
        "resize-l1-in-memory-before-the-header",
        _RESIZE,
        """
          old, old_clusters = header.l1_offset, geometry.clusters(8 * header.l1_size)
        + tables.l1 = table
          try:
        """,
        "If the header can't be changed, memory uses a table that was freed.",
        _FAILURE,
        equivalent="The former table's entries are the first of the new one; the others are zero.",
    ),
    Mutation(
        "resize-l1-leaks-where-it-fails",
        _RESIZE,
        """
              await image.header_file.change(l1_offset=offset, l1_size=entries)
          except BaseException:
              image.overlap.metadata_removed(run.first, run.length)
        -     image.commit.free(run.first, run.length)
              raise
        """,
        "Each time that growing fails, the file gets longer.",
        _FAILURE,
    ),
    Mutation(
        "resize-size-before-its-new-part",
        _RESIZE,
        """
          if mode is PreallocMode.OFF:
        -     await _hide_backing(image, size)
        +     await _set_size(image, size)
        +     image.header.size = old_size
        +     await _hide_backing(image, size)
          else:
        """,
        "After a crash the disk's new part shows the data of a longer backing file.",
        _CRASH,
    ),
    Mutation(
        "resize-shows-the-backing-file",
        _RESIZE,
        """
        - stop = geometry.clusters(min(size, image.backing.node.size))
        + stop = min(size, image.backing.node.size) >> geometry.cluster_bits
        """,
        "A disk that grows by a part of a cluster shows the data of a longer backing file there.",
        _CRASH,
    ),
    Mutation(
        "resize-shows-the-rest-of-the-last-cluster",
        _RESIZE,
        """
          if old_size < border and not await _reads_zero(image, old_size, border):
        -     await zero_bytes(old_size, border)
        +     pass
        """,
        "A disk that grows shows old data behind its end in its last cluster.",
        _CRASH,
    ),
    Mutation(
        "resize-takes-a-raw-data-file-for-zeroes",
        _RESIZE,
        """
        - if image.header.raw_data_file:
        -     return False  # only the data file knows
          return await image.zeroer.reads_zero(start, stop - start)
        """,
        "A disk that grows shows data of its raw data file behind the disk's end.",
        ("integration/qcow2/test_raw_data_file.py",),
    ),
    Mutation(
        "resize-of-version-2-over-a-longer-file",
        _RESIZE,
        """
        - image.header.version >= 3
        + image.header.version >= 2
          or not _backing_is_longer(image)
        """,
        "Growing a version 2 image fails half-way, or shows the data of a longer backing file.",
        ("integration/qcow2/test_qmp.py",),
    ),
    Mutation(
        "shrink-keeps-the-long-l1-table",
        _SHRINK,
        """
        - top = _Top(image.header.l1_offset if kept else 0, image.tables.l1[:kept].copy(), None)
        + top = _Top(image.header.l1_offset if kept else 0, image.tables.l1.copy(), None)
          return top, await _rest_of(image, kept, None)
        """,
        "The file still maps clusters past the end that are given up.",
        _SHRUNK,
    ),
    Mutation(
        "shrink-copies-what-it-cuts-off",
        _SHRINK,
        """
        - rest[:] = 0
          return words
        """,
        "A disk that shrinks and grows again shows what it had.",
        _SHRUNK,
    ),
    Mutation(
        "shrink-gives-up-what-the-copy-keeps",
        _SHRINK,
        """
              stays = Tables(np.zeros(1, np.int64), np.array([-1]), words[None, :])
        -     add_entries(references, image, stays, Faults())
        """,
        "A disk that shrinks loses the rest of the L2 table that it ends in.",
        _SHRUNK,
    ),
    Mutation(
        "shrink-cuts-the-data-file-last",
        _SHRINK,
        """
          if image.geometry.external_data:
        -     await _cut_data(image, size)
          await image.header_file.change(**members)
        + if image.geometry.external_data:
        +     await _cut_data(image, size)
        """,
        "After a crash a raw data file has old data past the disk's end.",
        _SHRUNK,
    ),
    Mutation(
        "resize-keeps-clusters-past-the-end",
        _RESIZE,
        """
        - first = geometry.clusters(start)
        + first = geometry.clusters(start) + 1
          begin, end = first >> geometry.l2_bits, geometry.l1_entries(stop)
        """,
        "A disk that shrinks and grows again shows its old data.",
        ("integration/qcow2/test_order.py", *_FAILURE),
    ),
    Mutation(
        "resize-takes-the-last-cluster",
        _RESIZE,
        """
        - first = geometry.clusters(start)
        + first = start >> geometry.cluster_bits
          begin, end = first >> geometry.l2_bits, geometry.l1_entries(stop)
        """,
        "A disk that grows from the middle of a cluster loses it.",
        (*_CRASH, "integration/qcow2/test_write.py"),
    ),
    Mutation(
        "resize-grows-over-what-was-past-the-end",
        _RESIZE,
        """
          async with image.lock:
        -     await _forget(image, old_size, size)
              if geometry.external_data:
        """,
        "A disk that grows shows clusters that a crash has left past its end.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "resize-drops-a-table-in-use",
        _RESIZE,
        """
        - if low == index << geometry.l2_bits:
        + if low >= index << geometry.l2_bits:
              await image.commit.write()
        """,
        "A disk that grows loses the L2 table that it ended in.",
        _CRASH,
    ),
    Mutation(
        "resize-that-failed-keeps-what-it-has-mapped",
        _RESIZE,
        """
              async with image.lock:
        -         await _undo_growth(image, size, data_size)
        +         pass
              raise
        """,
        "Each time that growing fails, clusters past the end stay in use.",
        _FAILURE,
    ),
    Mutation(
        "preallocated-subclusters-show-what-lies-below",
        f"{_QCOW2}/preallocate.py",
        """
          if geometry.extended_l2 and zeroes:
        -     words[places, 1] = ALL_SUBCLUSTERS << SUBCLUSTERS
        +     pass
        """,
        "A disk that grows shows the data of a longer backing file.",
        _CRASH,
    ),
    Mutation(
        "users-not-told-of-the-size-after-an-error",
        "vhostblk/block/graph/edge.py",
        """
        - finally:
        -     if self.node.size != old_size:
        -         notify_resize(self.node)
        + except OSError:
        +     raise
        + if self.node.size != old_size:
        +     notify_resize(self.node)
        """,
        "The guest uses a size that the disk no longer has.",
        _CANCELLED,
    ),
    Mutation(
        "snapshot-shares-without-references",
        _SNAPSHOTS,
        """
          try:
        -     await change_refcounts(image, references, 1, pace)
        +     pass
          except BaseException:
              image.commit.free(run.first, run.length)
              raise
        """,
        "Clusters that only a snapshot refers to are free.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-references-after-the-table",
        _SNAPSHOTS,
        """
              image.commit.wrote()
        -     await image.commit.write()
        -     await image.commit.sync()
          except BaseException:
        """,
        "After a crash a cluster of a snapshot has a refcount of one, or zero.",
        _CRASH,
    ),
    Mutation(
        "snapshot-clusters-stay-writable",
        _SNAPSHOTS,
        """
          tables.share_all()
        - await clear_copied(image, tables.l1, pace)
          snapshot.l1_offset = taken.run.first << image.geometry.cluster_bits
        """,
        "A write after a snapshot changes the snapshot.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-tables-stay-writable",
        f"{_QCOW2}/tables.py",
        """
        - self.l1 &= ~np.uint64(COPIED)
          self.l1_changes.touch(0, len(self.l1))
        """,
        "A write into an unallocated cluster after a snapshot changes the snapshot.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "snapshot-keeps-cached-tables",
        f"{_QCOW2}/copied.py",
        """
        - await image.tables.drop(pace)
          image.commit.wrote()
        """,
        "Cached entries still say that clusters may be written in place.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-table-before-its-clusters",
        _SNAPSHOTS,
        """
        - await image.commit.sync()
          await image.header_file.change(nb_snapshots=len(entries), snapshots_offset=offset)
        """,
        "After a crash the header refers to a snapshot table that wasn't written.",
        _CRASH,
    ),
    Mutation(
        "snapshot-table-without-its-refcounts",
        _SNAPSHOTS,
        """
        - await image.commit.write()
          await image.commit.sync()
          await image.header_file.change(nb_snapshots=len(entries), snapshots_offset=offset)
        """,
        "After a crash the snapshot table is in a cluster that is free.",
        _CRASH,
    ),
    Mutation(
        "snapshot-table-freed-before-the-header",
        _SNAPSHOTS,
        """
          old, old_clusters = header.snapshots_offset, geometry.clusters(snapshots.table_bytes)
        + if old_clusters:
        +     image.commit.free(old >> geometry.cluster_bits, old_clusters)
          try:
        ...
        - if old_clusters:
        -     image.commit.free(old >> geometry.cluster_bits, old_clusters)
          image.overlap.collect()
        """,
        "After a crash the header refers to the former snapshot table, whose clusters are reused.",
        _CRASH,
    ),
    Mutation(
        "snapshot-table-where-guests-write",
        _SNAPSHOTS,
        """
          if data:
        -     await image.become_metadata(run.first, run.length, "snapshot_table")
        +     pass
          await write_bytes(image.file, offset, data)
        """,
        "Where an image says that data lies on a free cluster, a guest writes over the snapshots.",
        ("integration/qcow2/test_becoming_metadata.py",),
    ),
    Mutation(
        "snapshot-table-leaks-where-it-fails",
        _SNAPSHOTS,
        """
          if data:
              image.overlap.metadata_removed(run.first, run.length)
        -     image.commit.free(run.first, run.length)
          raise
        """,
        "Each time that a snapshot fails, the file gets longer.",
        _FAILURE,
    ),
    Mutation(
        "snapshot-that-failed-keeps-its-references",
        _SNAPSHOTS,
        """
          except BaseException:
        -     taken.give_up(image)
        -     await try_to_tidy_up(image)
              raise
        """,
        "After a snapshot that failed, clusters are never free again.",
        _FAILURE,
    ),
    Mutation(
        "snapshot-that-failed-early-keeps-its-references",
        _SNAPSHOTS,
        """
          except BaseException:
        -     taken.give_up(image)
              raise
          return taken
        """,
        "After a snapshot that failed, clusters are never free again.",
        _FAILURE,
    ),
    Mutation(
        "snapshot-name-too-long",
        _SNAPSHOTS,
        """
        - name=name[:MAX_SNAPSHOT_NAME],
        + name=name,
        """,
        "A snapshot fails after it has added a reference to every cluster.",
        ("integration/qcow2/test_snapshots.py",),
    ),
    Mutation(
        "snapshot-table-too-long-too-late",
        _SNAPSHOTS,
        """
        - await _encode(image, [*entries, snapshot])  # raises OSError if there is no room
          await image.commit.write_all()
        """,
        "A snapshot for which there is no room fails after it has changed the disk's tables.",
        ("integration/qcow2/test_snapshots.py",),
    ),
    Mutation(
        "snapshot-deleted-before-the-table",
        _SNAPSHOTS,
        """
    - await _write_table(image, [each for each in image.snapshots.entries if each is not snapshot])
      image.commit.free_many(references, discard=image.settings.discard_snapshot)
    + await _write_table(image, [each for each in image.snapshots.entries if each is not snapshot])
        """,
        "After a crash a snapshot exists whose clusters are free.",
        _CRASH,
    ),
    Mutation(
        "snapshot-deleted-keeps-its-clusters",
        _SNAPSHOTS,
        """
        - image.commit.free_many(references, discard=image.settings.discard_snapshot)
          await try_to_tidy_up(image)
        """,
        "The clusters of a deleted snapshot are leaked.",
        (*_CRASH, "integration/qcow2/test_snapshots.py"),
    ),
    Mutation(
        "snapshot-deleted-keeps-the-old-entries",
        _SNAPSHOTS,
        """
          pace = Pace(image, "freeing clusters")
        - await image.tables.drop(pace)
        """,
        "Cached tables overwrite changes that were made in the file.",
        _SNAPS,
    ),
    Mutation(
        "snapshot-deleted-flags-before-refcounts",
        _SNAPSHOTS,
        """
          await image.commit.write_all()
        - await image.commit.sync()
          pace = Pace(image, "freeing clusters")
        """,
        "After a crash a cluster may be written in place whose refcount is still 2.",
        _CRASH,
        equivalent="A count that is too high costs space only.",
    ),
    Mutation(
        "snapshot-deleted-flags-never-set",
        _LIFECYCLE,
        """
        - if image.untidy:
        + if image.untidy and not image.writable:
              from vhostblk.block.drivers.qcow2.snapshot_changes import try_to_tidy_up
        """,
        "Bits that could not be set are forgotten: the image has errors for a check to find.",
        _FAILURE,
    ),
    Mutation(
        "apply-before-the-flags-are-synced",
        _APPLY,
        """
          await clear_copied(image, table, pace)
        - await image.commit.sync()
          offset = taken.run.first << image.geometry.cluster_bits
        """,
        "After a crash the disk writes to the snapshot's clusters in place.",
        _CRASH,
    ),
    Mutation(
        "apply-gives-up-before-the-switch",
        _APPLY,
        """
        - await _switch(image, snapshot.disk_size, table, pace)
          image.commit.free_many(given_up)
        + await _switch(image, snapshot.disk_size, table, pace)
          try:
        """,
        "After a crash the header refers to clusters that were freed.",
        _CRASH,
    ),
    Mutation(
        "apply-keeps-cached-tables",
        _APPLY,
        """
        - image.tables.clear()
          image.take_l1(table)
        """,
        "A disk that was reverted to a snapshot reads as before.",
        (*_CRASH, *_SNAPS),
        equivalent="Clearing bits in the tables drops all slices, and nothing loads one since.",
    ),
    Mutation(
        "apply-writes-into-the-snapshot",
        _APPLY,
        """
          try:
        -     await clear_copied(image, table, pace)
              await image.commit.sync()
        """,
        "A write after reverting to a snapshot changes the snapshot.",
        _SNAPS,
    ),
    Mutation(
        "apply-tables-writable-in-place",
        _APPLY,
        """
        -     part &= ~np.uint64(COPIED)
        +     part |= np.where(part, np.uint64(COPIED), np.uint64(0))
        """,
        "A write after reverting to a snapshot changes a table of the snapshot.",
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
        "After a crash a bitmap counts as valid that lacks writes.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "bitmap-mark-before-the-header-is-known",
        _BITMAPS,
        """
        - await image.header_file.confirm()
          if extension is None or all(entry.in_use for entry in self.entries):
        """,
        "Bitmaps are marked in one directory, but the file's header refers to another.",
        (f"{_BITS[0]}::test_a_bitmap_that_may_be_valid_in_the_file_is_marked_before_writes_go_on",),
    ),
    Mutation(
        "bitmap-directory-before-the-bitmaps",
        _BITMAPS,
        """
          image.commit.wrote()
          await image.commit.write()
        - await image.commit.sync()
          try:
        """,
        "After a crash a directory counts as valid whose bitmaps weren't written.",
        (*_CRASH, *_BITS),
    ),
    Mutation(
        "bitmap-directory-without-its-refcounts",
        _BITMAPS,
        """
          image.commit.wrote()
        - await image.commit.write()
          await image.commit.sync()
          try:
        """,
        "After a crash bitmaps are in clusters that are free.",
        (*_CRASH, *_BITS),
    ),
    Mutation(
        "bitmap-that-failed-keeps-its-clusters",
        _BITMAPS,
        """
          for cluster in taken:
        -     self._image.commit.free(cluster)
        +     pass
        """,
        "Each time that bitmaps can't be stored, the file gets longer.",
        _FAILURE,
    ),
    Mutation(
        "bitmap-of-the-image-not-recording",
        _LIFECYCLE,
        """
          self.bitmaps = bitmaps
        - node_bitmaps.refresh(self)
        """,
        "A persistent bitmap lacks writes made after opening.",
        _BITS,
        equivalent="Before the disk may change, unlocking the bitmaps looks at them once more.",
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
        "After an inactivation that failed, a crash leaves bitmaps that lack writes.",
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
        -     failed = error  # the rest is done all the same
        +     logger.debug("%s", error)
        """,
        "Bitmaps that could not be stored are lost, without an error.",
        ("integration/qcow2/test_node_changes.py",),
    ),
)
