# SPDX-License-Identifier: Apache-2.0
"""qcow2: metadata in places that something else has, or without storage; corrupt images."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_QCOW2 = "vhostblk/block/drivers/qcow2"
_COMMIT = f"{_QCOW2}/commit.py"
_IMAGE = f"{_QCOW2}/image.py"
_REFCOUNTS = f"{_QCOW2}/refcounts.py"
_ALLOCATOR = f"{_QCOW2}/allocator.py"
_OVERLAP = f"{_QCOW2}/overlap.py"
_PUBLISH = f"{_QCOW2}/publish.py"
_SNAPSHOTS = f"{_QCOW2}/snapshot_changes.py"
_BITMAPS = f"{_QCOW2}/bitmap_store.py"
_HEADER_FILE = f"{_QCOW2}/header_file.py"
_LIFECYCLE = f"{_QCOW2}/lifecycle.py"
_NODE = f"{_QCOW2}/node.py"

_PLACES = ("integration/qcow2/test_places.py",)
_BECOMING = ("integration/qcow2/test_becoming_metadata.py",)
_CORRUPTION = ("integration/qcow2/test_corruption.py", "integration/qcow2/test_opening.py")

MUTATIONS = (
    Mutation(
        "table-without-storage",
        _IMAGE,
        """
          self.overlap.check_table("active_l2", found.host, self.tables.slice_size)
        - await self.places.ensure(found.host)
          found.placed = True
        """,
        "On a full file system no metadata refers to acknowledged data.",
        ("integration/qcow2/test_full.py",),
    ),
    Mutation(
        "refblock-without-storage",
        _IMAGE,
        """
          self.overlap.check_table("refcount_block", offset, self.geometry.cluster_size)
        - await self.places.ensure(offset)
        """,
        "On a full file system clusters in use count as free.",
        ("integration/qcow2/test_full.py",),
    ),
    Mutation(
        "table-over-something-else",
        _IMAGE,
        """
          if not found.placed:
        -     self.overlap.check_table("active_l2", found.host, self.tables.slice_size)
              await self.places.ensure(found.host)
        """,
        "An L2 table is changed that overlaps the refcount table.",
        _PLACES,
    ),
    Mutation(
        "shared-table-over-something-else",
        _IMAGE,
        """
          if old:
        -     self.overlap.check_table("active_l2", old << bits, self.geometry.cluster_size)
        +     pass
          run = await self.allocator.allocate_together(1)
        """,
        "A table that overlaps other metadata is freed, and reused.",
        _PLACES,
    ),
    Mutation(
        "l1-over-something-else",
        _IMAGE,
        """
        - self.overlap.check_table("active_l1", self.header.l1_offset + 8 * index, 8 * count)
        + assert count
        """,
        "An L1 table is changed that overlaps other metadata.",
        _PLACES,
    ),
    Mutation(
        "refblock-over-something-else",
        _IMAGE,
        """
        - self.overlap.check_table("refcount_block", offset, self.geometry.cluster_size)
          await self.places.ensure(offset)
        """,
        "A refcount block is changed that overlaps other metadata.",
        _PLACES,
    ),
    Mutation(
        "reftable-over-something-else",
        _IMAGE,
        """
        - self.overlap.check_table("refcount_table", place, 8)
        + assert place
          self.refcounts.table[index] = offset
        """,
        "A refcount table is changed that overlaps other metadata.",
        _PLACES,
    ),
    Mutation(
        "refblock-place-never-checked",
        _REFCOUNTS,
        """
        - await self.check_place(block.host)
          return block
        """,
        "A refcount block is changed that overlaps other metadata, or has no storage.",
        _PLACES,
    ),
    Mutation(
        "unaligned-refblock-is-used",
        _REFCOUNTS,
        """
          self.corrupt(f"Refblock offset {offset:#x} unaligned (reftable index: {in_hex(index)})")
        - raise os_error(errno.EIO)
        """,
        "Counts are read from, and written to, the middle of two clusters.",
        _PLACES,
    ),
    Mutation(
        "freed-clusters-over-metadata",
        _COMMIT,
        """
        - self._image.overlap.check_freed(clusters)
          self._image.allocator.released(clusters)
        """,
        "Metadata that is also used by something else is freed, and reused.",
        _PLACES,
    ),
    Mutation(
        "tree-of-a-snapshot-not-checked",
        _SNAPSHOTS,
        """
        - image.overlap.check_tree(l1)
          references, wrong = await gather_tree(image, l1, pace)
        """,
        "Bits are cleared in a cluster that is not an L2 table.",
        _PLACES,
    ),
    Mutation(
        "bitmap-directory-over-something-else",
        _BITMAPS,
        """
        - image.overlap.check_table("bitmap_directory", extension.offset, extension.size)
          marked = [replace(each, flags=each.flags | layout.BITMAP_IN_USE) for each in self.entries]
        """,
        "Marks are written over other metadata.",
        _PLACES,
    ),
    Mutation(
        "table-of-two-l1-entries",
        _OVERLAP,
        """
        - self._contested = repeated(np.concatenate([*found.values(), shared]))
        + self._contested = repeated(np.concatenate([*found.values()]))
        """,
        "One L2 table maps two parts of the disk, and a write to one is seen in the other.",
        _PLACES,
    ),
    Mutation(
        "repair-leaves-blocks-in-bad-places",
        f"{_QCOW2}/repair.py",
        """
        - found = np.flatnonzero((offsets != 0) & (shared | ~well_placed(image))).tolist()
        + found = np.flatnonzero((offsets != 0) & (~well_placed(image))).tolist()
        """,
        "A repaired image has refcount blocks that overlap other structures.",
        _PLACES,
    ),
    Mutation(
        "overlap-ends-early",
        _OVERLAP,
        """
        - return place < len(clusters) and int(clusters[place]) < first + count
        + return place < len(clusters) and int(clusters[place]) == first
        """,
        "A run of clusters that contains metadata is allocated for data.",
        (*_PLACES, *_CORRUPTION),
    ),
    Mutation(
        "overlap-without-tables-of-snapshots",
        _OVERLAP,
        """
        - self.incomplete = bool("inactive_l2" in image.settings.overlap and snapshots)
        + self.incomplete = False
        """,
        "With overlap-check=all, data is written over a snapshot's tables.",
        _CORRUPTION,
    ),
    Mutation(
        "corrupt-image-is-committed",
        _COMMIT,
        """
          image = self._image
        - image.check_usable()
          await image.header_file.confirm()
        """,
        "An image that was found corrupt is still written to.",
        _PLACES,
        equivalent="Code that finds an image corrupt raises; each request checks before it begins.",
    ),
    Mutation(
        "corrupt-image-goes-on",
        _IMAGE,
        """
          logger.error("qcow2: Marking image as corrupt: %s: %s", name, text)
        - self.refuse_writes()
          self.header.incompatible |= Incompatible.CORRUPT
        """,
        "A corrupt image is changed further.",
        _CORRUPTION,
    ),
    Mutation(
        "corrupt-bit-not-flushed",
        _HEADER_FILE,
        """
          await write_bytes(self._image.file, offset, features)
        - await self._image.file.flush()
        """,
        "After a crash a corrupt image is opened for writing again.",
        _CORRUPTION,
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
        "refcounts-without-storage",
        _ALLOCATOR,
        """
              await image.become_metadata(own, 1, "refcount_block")
        -     await image.places.make(own << geometry.cluster_bits)
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
        "A cluster that was discarded and then used for a table has no storage.",
        ("integration/qcow2/test_full.py",),
        equivalent="A cluster that becomes metadata is written as a whole then: it has storage.",
    ),
    Mutation(
        "allocation-over-metadata",
        _ALLOCATOR,
        """
              raise os_error(errno.EFBIG)
        - self._image.overlap.check_allocation(first, count)
        """,
        "Data is written over tables whose refcount says that they are free.",
        _CORRUPTION,
    ),
    Mutation(
        "overlap-forgets-new-tables",
        _OVERLAP,
        """
          for cluster in range(first, first + count):
              self._added[cluster] = what
        - self._all = None
        """,
        "In a corrupt image with data in the place of a new table, the table is overwritten.",
        _CORRUPTION,
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
        "corrupt-image-is-written",
        _LIFECYCLE,
        """
        - if parsed.incompatible & Incompatible.CORRUPT and not node.read_only:
        -     raise BlockError("qcow2: Image is corrupt; cannot be opened read/write")
          await open_data_file(node, graph, parsed)
        """,
        "A corrupt image is changed.",
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
        "write-errors-of-a-corrupt-image",
        _NODE,
        """
          host = publisher.overwritable(offset, iov.nbytes)
          if host < 0:
        -     image.check_usable()
              await image.writer.write(offset, iov)
        """,
        "A corrupt image is still written to.",
        _CORRUPTION,
        equivalent="The writer checks that itself, before it does anything.",
    ),
    Mutation(
        "published-entry-outlives-its-check",
        _PUBLISH,
        """
          if self._counted:
        -     self._referred.replaced(run[places], new)
        +     pass
          run[places] = new
        """,
        "In a corrupt image with data in a free cluster, the data overwrites a new table there.",
        _BECOMING,
    ),
    Mutation(
        "written-entry-outlives-its-check",
        _PUBLISH,
        """
          if self._counted:
        -     self._referred.replaced_one(int(self.entries[cluster]), entry)
        +     pass
          self.entries[cluster] = entry
        """,
        "Where such data was zeroes when it was read, and has been written, it is no better.",
        _BECOMING,
    ),
    Mutation(
        "entries-searched-in-one-turn",
        _PUBLISH,
        """
              done = 0
        -     await asyncio.sleep(0)
        """,
        "In a damaged image all others wait while a table finds its place.",
        _BECOMING,
    ),
    Mutation(
        "entries-taken-back-stay-counted",
        f"{_QCOW2}/referred.py",
        """
        - for entries, step in ((old, _DOWN), (new, _UP)):
        + for entries, step in ((new, _UP),):
              overwritable = entries[(entries & np.uint64(OVERWRITE)) != 0]
        """,
        "Each table that takes a cluster that the guest has discarded makes the event loop wait.",
        _BECOMING,
    ),
    Mutation(
        "table-written-before-what-is-in-flight-has-ended",
        _IMAGE,
        """
          if await publisher.take_back(first, count):
        -     await publisher.settle()
        +     pass
        """,
        "In such an image, a write that is in flight overwrites the new table.",
        _BECOMING,
    ),
)
