# SPDX-License-Identifier: Apache-2.0
"""qcow2: writing, reading and forgetting guest data, and what is published for the engine."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_QCOW2 = "vhostblk/block/drivers/qcow2"
_WRITE = f"{_QCOW2}/write.py"
_FRESH = f"{_QCOW2}/write_fresh.py"
_AHEAD = f"{_QCOW2}/ahead.py"
_PUBLISH = f"{_QCOW2}/publish.py"
_MAPPING = f"{_QCOW2}/mapping.py"
_ZERO = f"{_QCOW2}/zero.py"
_READ = f"{_QCOW2}/read.py"
_NODE = f"{_QCOW2}/node.py"
_PACKED = f"{_QCOW2}/write_compressed.py"

_BURSTS = ("integration/qcow2/test_bursts.py",)
_WRITES = ("integration/qcow2/test_write.py", "integration/qcow2/test_bursts.py",
           "integration/qcow2/test_writes_in_any_order.py")  # fmt: skip
_ERRORS = ("integration/qcow2/test_write_errors.py", "integration/qcow2/test_bursts.py")
_ZEROES = ("integration/qcow2/test_zero.py", "integration/qcow2/test_write.py",
           "integration/qcow2/test_writes_in_any_order.py")  # fmt: skip
_MAPS = ("tests/block/qcow2/test_mapping.py", "integration/qcow2/test_express.py",
         "integration/qcow2/test_snapshots.py")  # fmt: skip
_COMPRESSED = ("integration/qcow2/test_compressed.py",)
_VOLATILE = ("integration/qcow2/test_volatile.py",)

MUTATIONS = (
    Mutation(
        "shared-cluster-written-in-place",
        _WRITE,
        """
        - plan.new = not geometry.external_data and (entry.host < 0 or not entry.copied)
        + plan.new = not geometry.external_data and entry.host < 0
        """,
        "A write changes a cluster that a snapshot shares.",
        (*_WRITES, "integration/qcow2/test_snapshots.py"),
    ),
    Mutation(
        "subclusters-of-the-old-cluster-lost",
        _WRITE,
        """
        - plan.needed = touched | (kept if entry.compressed else entry.data)
        + plan.needed = touched | (kept if entry.compressed else 0)
        """,
        "A write to a shared cluster loses the rest of the cluster's data.",
        (*_WRITES, "integration/qcow2/test_snapshots.py"),
    ),
    Mutation(
        "compressed-cluster-not-kept",
        _WRITE,
        """
        - plan.needed = touched | (kept if entry.compressed else entry.data)
        + plan.needed = touched | entry.data
        """,
        "A write to a compressed cluster loses the rest of it, where there are subclusters.",
        (*_WRITES, *_COMPRESSED),
    ),
    Mutation(
        "nothing-below-is-filled-in",
        _WRITE,
        """
        - if kind is Kind.UNALLOCATED and not has_backing:
        + if kind is Kind.UNALLOCATED:
              kind = Kind.ZERO
        """,
        "A write to part of a cluster hides the backing file's data in the rest.",
        _WRITES,
    ),
    Mutation(
        "backing-is-zero-by-its-first-half",
        _WRITE,
        """
        - has_backing = not self._backing_is_zero(start, geometry.cluster_size)
        + has_backing = not self._backing_is_zero(start, geometry.cluster_size // 2)
        """,
        "A write to part of a cluster hides the backing file's data in the rest.",
        _ZEROES,
    ),
    Mutation(
        "gap-between-two-writes-not-filled",
        _WRITE,
        """
          if start > low:
        -     result.append((low, start))
          low = stop
        """,
        "The part before a write in a reused cluster shows the cluster's former content.",
        _WRITES,
    ),
    Mutation(
        "end-of-the-cluster-not-filled",
        _WRITE,
        """
        - if low < high:
        + if low < high and not result:
              result.append((low, high))
          return result
        """,
        "The part behind a write in a reused cluster shows the cluster's former content.",
        _WRITES,
    ),
    Mutation(
        "ranges-joined-over-a-gap",
        _WRITE,
        """
        - if result and low <= result[-1][1]:
        + if result and low <= result[-1][1] + 512:
        """,
        "A gap of a sector between two writes shows the host cluster's former content.",
        _WRITES,
    ),
    Mutation(
        "union-cut-short",
        _WRITE,
        """
        - result[-1] = (result[-1][0], max(result[-1][1], high))
        + result[-1] = (result[-1][0], high)
        """,
        "A short write inside a long one: the rest of the long one is filled in with old data.",
        _ERRORS,
    ),
    Mutation(
        "used-cluster-counts-as-fresh",
        _WRITE,
        """
          plan.host = cluster << bits
        - plan.fresh = run.fresh
        + plan.fresh = True
        """,
        "The rest of a new cluster shows the former content of the host cluster.",
        _WRITES,
    ),
    Mutation(
        "entries-change-before-the-data",
        _WRITE,
        """
        - failures = await gather([self._transfer(each) for each in transfers])
        + self._link_all(plans)
        + failures = await gather([self._transfer(each) for each in transfers])
        ...
        - self._link([plan for plan in plans if plan.error is None and plan.needed])
        + def _link_all(self, plans: list[_Plan]) -> None:
        +     self._link([plan for plan in plans if plan.error is None and plan.needed])
        """,
        "Readers see a cluster before its data is written; after a failed write it is garbage.",
        (*_WRITES, *_ERRORS),
    ),
    Mutation(
        "failed-plan-is-linked",
        _WRITE,
        """
        - self._link([plan for plan in plans if plan.error is None and plan.needed])
        + self._link([plan for plan in plans if plan.needed])
        """,
        "After a write that failed the cluster shows garbage.",
        _ERRORS,
    ),
    Mutation(
        "failed-write-is-acknowledged",
        _WRITE,
        """
          for request in plan.requests if plan.error is not None else ():
        -     request.error = request.error or plan.error
        +     pass
        """,
        "A write that failed is acknowledged.",
        _ERRORS,
    ),
    Mutation(
        "failed-copy-is-written",
        _WRITE,
        """
          if error is not None:
        -     copy.plan.error = copy.plan.error or error
        +     copy.plan.fills.clear()
        """,
        "A cluster whose rest could not be read from below has garbage there.",
        _ERRORS,
    ),
    Mutation(
        "host-cluster-given-back-while-in-use",
        _WRITE,
        """
          for plan in plans:
        -     if plan.error is not None:
        +     if plan.error is not None or not plan.fresh:
                  await self._undo(plan)
        """,
        "A cluster is free that an entry refers to.",
        (*_WRITES, *_ERRORS),
    ),
    Mutation(
        "old-cluster-kept-in-use",
        _WRITE,
        """
          if plan.new:
        -     image.give_up(entry)
        +     pass
        """,
        "Every write to a shared cluster leaks a cluster: the file system gets full.",
        ("integration/qcow2/test_snapshots.py", *_WRITES),
    ),
    Mutation(
        "zero-subclusters-become-data",
        _WRITE,
        """
        - zero = 0 if entry.compressed else entry.zero & ~plan.needed
        + zero = 0
        """,
        "After a write with extended entries, zero subclusters show the backing file's data.",
        _WRITES,
    ),
    Mutation(
        "transfers-joined-over-a-gap",
        _WRITE,
        """
        - if last is not None and last.host + last.length == transfer.host:
        + if last is not None and last.host + last.length >= transfer.host - 512:
              if last.iovs is not None and transfer.iovs is not None and last.length < MAX_RUN:
        """,
        "Data behind a gap is written into the gap.",
        _WRITES,
    ),
    Mutation(
        "fresh-where-clusters-were-freed",
        _FRESH,
        """
        - self._fresh = image.allocator.gives_fresh
        + self._fresh = image.grows_with_zeroes
        ...
        - if not all(run.fresh for run in runs):
        + if not any(run.fresh for run in runs):
        """,
        "The rest of a new cluster shows the former content of the host cluster.",
        (*_WRITES, "integration/qcow2/test_reuse.py"),
    ),
    Mutation(
        "fresh-on-a-device",
        _FRESH,
        """
        - self._fresh = image.allocator.gives_fresh
        + self._fresh = image.allocator.hint >= image.allocator.high_water
        ...
        - if not all(run.fresh for run in runs):
        + if False:
        """,
        "On a block device, the rest of a new cluster shows the device's former content.",
        ("integration/qcow2/test_growth.py",),
    ),
    Mutation(
        "fresh-in-a-shared-table",
        _FRESH,
        """
          or found.words[number & tables.entry_mask]
        - or not int(tables.l1[number >> self._image.geometry.l2_bits]) & COPIED
        """,
        "A burst changes an L2 table that a snapshot has, too.",
        ("integration/qcow2/test_snapshots.py", *_BURSTS),
        equivalent="`placed` is set for the disk's own tables only; a snapshot drops all slices.",
    ),
    Mutation(
        "fresh-over-data",
        _FRESH,
        """
          or not self._fresh
        - or found.words[number & tables.entry_mask]
        """,
        "A burst treats a cluster that has data as a new one.",
        _WRITES,
    ),
    Mutation(
        "covered-with-a-gap",
        _FRESH,
        """
        - if start > end:
        + if start > end + 512:
              return False
        """,
        "A gap of a sector in a new cluster hides the backing file's data there.",
        _BURSTS,
    ),
    Mutation(
        "covered-by-the-last-part",
        _FRESH,
        """
        - end = max(end, start + iov.nbytes)
        + end = end + iov.nbytes
        """,
        "Writes that overlap each other count twice: a gap hides the backing file's data.",
        _ERRORS,
    ),
    Mutation(
        "guests-data-under-the-copy",
        _FRESH,
        """
          some, window = clusters[low:high], whole.segments_from(low, high)
        + for index, each in enumerate(some, low):
        +     for start, iov, _ in each.parts:
        +         iov.copy_out(address + size * index + start)
          failures = await backing.pread_segments([each.number * size for each in some], window)
        - for index, each in enumerate(some, low):
        -     for start, iov, _ in each.parts:
        -         iov.copy_out(address + size * index + start)
        """,
        "Data of the backing file replaces data that the guest has written.",
        _BURSTS,
    ),
    Mutation(
        "long-write-loses-its-last-part",
        _FRESH,
        """
        - low, high = max(offset, start), min(request.stop, start + (1 << bits))
        + low, high = max(offset, start), min(request.stop, start + (1 << bits) - 512)
        """,
        "A write over several new clusters loses a sector of each.",
        _BURSTS,
    ),
    Mutation(
        "failed-fresh-write-is-acknowledged",
        _FRESH,
        """
          for _, _, request in cluster.parts:
        -     request.error = cluster.error
        +     request.error = None
        """,
        "A write to a new cluster that failed is acknowledged.",
        _ERRORS,
    ),
    Mutation(
        "failed-fresh-cluster-is-linked",
        _FRESH,
        """
          failed.append(cluster)
        - continue
        """,
        "A free cluster is referred to.",
        _ERRORS,
    ),
    Mutation(
        "only-the-first-owner-hears",
        _FRESH,
        """
        - for owner in owners if error is not None else ():
        + for owner in owners[:1] if error is not None and run[0][2] is owners else ():
              owner.error = error
        """,
        "Of a run of writes that failed all but the first one are acknowledged.",
        _ERRORS,
    ),
    Mutation(
        "fresh-data-counts-as-synced",
        _FRESH,
        """
        - if failures:
        -     self._image.commit.wrote()
        """,
        "Entries are written to the file before the data that they refer to.",
        ("integration/qcow2/test_order.py",),
    ),
    Mutation(
        "data-counts-as-synced",
        _WRITE,
        """
          failures = await gather([self._transfer(each) for each in transfers])
        - image.commit.wrote()
        """,
        "Entries are written to the file before the data that they refer to.",
        _WRITES,
    ),
    Mutation(
        "overwritten-data-counts-as-synced",
        _NODE,
        """
          await image.guest_data.write(host, iov)
        - image.commit.wrote()
        """,
        "Entries are written to the file before data that was written through the published table.",
        _WRITES,
        equivalent="No entry relies on what is overwritten in place.",
    ),
    Mutation(
        "ahead-without-limit",
        _AHEAD,
        """
        - yield end, min(length // 4, MAX_AHEAD >> self._bits)
        + yield end, length
        """,
        "A stream is given all space of the file system.",
        ("tests/block/qcow2/test_ahead.py",),
    ),
    Mutation(
        "ahead-over-data",
        _FRESH,
        """
          taken = np.flatnonzero(found.words[first : first + count])
        - if len(taken):
        -     count = int(taken[0])
        """,
        "Clusters that a stream is given in advance replace data.",
        ("integration/qcow2/test_streams.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "ahead-hides-the-backing-file",
        _FRESH,
        """
        - elif count and not image.backing.known_zero(start, length):
        + elif count and not image.backing.known_zero(start, 1 << geometry.cluster_bits):
              return []
        """,
        "Clusters that a stream is given in advance hide what the backing file has.",
        ("integration/qcow2/test_streams.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "ahead-hides-a-backing-file-left-out",
        _FRESH,
        """
        - if image.header.backing_file is not None:
        + if image.header.backing_file == b"":
              return []  # left out by the user, who may attach it later
        """,
        "Clusters given in advance hide the backing file that is attached later on.",
        _BURSTS,
    ),
    Mutation(
        "ahead-before-the-burst-is-linked",
        _FRESH,
        """
        - await _link(image, clusters)
          await _give_ahead(image, clusters)
        + await _link(image, clusters)
        """,
        "Clusters that a stream is given in advance replace clusters of the same burst.",
        ("integration/qcow2/test_streams.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "ahead-behind-a-failed-write",
        _FRESH,
        """
        - written = (each.number for each in clusters if each.error is None)
        + written = (each.number for each in clusters)
        """,
        "A stream whose last write failed is given clusters behind a gap.",
        _ERRORS,
        equivalent="Nothing is lost by that: the clusters read as zeroes, as before.",
    ),
    Mutation(
        "burst-without-storage-for-its-tables",
        _FRESH,
        """
          found is None
        - or not found.placed
          or not self._fresh
        """,
        "On a full file system no metadata refers to acknowledged data.",
        ("integration/qcow2/test_full.py",),
    ),
    Mutation(
        "published-before-it-is-checked",
        _PUBLISH,
        """
        - limit=image.data_limit,
        + limit=1 << 62,
          has_backing=image.backing is not None,
        """,
        "The engine writes where an image wrongly says that its data is, past the file's end.",
        (*_MAPS, "integration/qcow2/test_corruption.py"),
    ),
    Mutation(
        "published-over-metadata",
        _PUBLISH,
        """
        - forbidden=image.overlap.offsets(),
        + forbidden=image.overlap.offsets()[:0],
        """,
        "The engine writes over metadata where an image wrongly says that its data is.",
        (*_MAPS, "integration/qcow2/test_corruption.py"),
    ),
    Mutation(
        "published-as-zeroes-over-a-backing-file",
        _PUBLISH,
        """
        - has_backing=image.backing is not None,
        + has_backing=False,
        """,
        "Data of the backing file reads as zeroes.",
        ("integration/qcow2/test_read.py", "integration/qcow2/test_bursts.py"),
    ),
    Mutation(
        "stale-entries-of-an-evicted-slice",
        _PUBLISH,
        """
        - self.revoke(found, 0, self.slice_clusters)
          self.volatile.evicted(number)
        """,
        "The engine uses entries that have changed since their slice was evicted.",
        _MAPS,
    ),
    Mutation(
        "evicted-slice-counts-as-durable",
        _PUBLISH,
        """
          self.revoke(found, 0, self.slice_clusters)
        - self.volatile.evicted(number)
        """,
        "With the write cache off, a write is acknowledged to a cluster whose entry was written to "
        "the file and never flushed.",
        _VOLATILE,
    ),
    Mutation(
        "new-entry-is-not-volatile",
        _PUBLISH,
        """
        - flags = np.uint64(READ | OVERWRITE | self.volatile.bit)
        + flags = np.uint64(READ | OVERWRITE)
        """,
        "With the write cache off, a write is acknowledged although a crash undoes the entry.",
        _VOLATILE,
    ),
    Mutation(
        "changed-entry-is-not-volatile",
        _PUBLISH,
        """
        - entry = host | READ | OVERWRITE | self.volatile.bit
        + entry = host | READ | OVERWRITE
        """,
        "With the write cache off, a write is acknowledged although a crash undoes the entry.",
        _VOLATILE,
    ),
    Mutation(
        "changed-subclusters-are-not-volatile",
        _PUBLISH,
        """
          mapped = self._map(found, low, high)
        - self.volatile.mark(mapped)
        """,
        "With the write cache off, a write is acknowledged although a crash undoes the entry.",
        _VOLATILE,
    ),
    Mutation(
        "loaded-slice-is-not-volatile",
        _PUBLISH,
        """
        - self.volatile.mark_loaded(found.number, mapped)
          self._publish(found, 0, mapped)
        """,
        "With the write cache off, a write is acknowledged to a cluster whose entry another "
        "process has written and not flushed.",
        _VOLATILE,
    ),
    Mutation(
        "volatile-bits-do-not-take-turns",
        f"{_QCOW2}/volatile.py",
        """
        - self.bit, self._other = self._other, self.bit
        """,
        "A flush clears the mark of entries that change meanwhile.",
        _VOLATILE,
    ),
    Mutation(
        "failed-flush-leaves-entries-durable",
        f"{_QCOW2}/volatile.py",
        """
          former, bit = np.uint64(self._other), np.uint64(self.bit)
        - for number, (low, high) in self._covered.items():
        + for number, (low, high) in list(self._covered.items())[1:]:
        """,
        "Entries that a failed flush covered are never marked as durable, or too early.",
        _VOLATILE,
    ),
    Mutation(
        "failed-flush-forgets-what-it-covered",
        f"{_QCOW2}/volatile.py",
        """
        - self._unknown |= self._unknown_covered
          self._unknown_covered = False
        """,
        "With the write cache off, a write is acknowledged to a cluster whose entry no flush has "
        "covered.",
        _VOLATILE,
    ),
    Mutation(
        "note-of-the-last-change-only",
        f"{_QCOW2}/volatile.py",
        """
        - low, high = min(low, before[0]), max(high, before[1])
        + low, high = min(low, before[0]), high
        """,
        "Entries stay marked for ever: no write to them is quick any more.",
        _VOLATILE,
    ),
    Mutation(
        "flush-covers-what-is-not-written",
        f"{_QCOW2}/flush.py",
        """
        - await self._write_changes()
          volatile = image.publisher.volatile
          volatile.begin()
        + await self._write_changes()
        """,
        "With the write cache off, a write is acknowledged to a cluster whose entry is in memory.",
        _VOLATILE,
    ),
    Mutation(
        "flush-that-failed-succeeds",
        "vhostblk/block/io/rounds.py",
        """
          except Exception as error:
        -     failure = error
        +     failure = None if len(waiting) > 1 else error
        """,
        "A flush that failed is acknowledged, where two have come together.",
        _VOLATILE,
    ),
    Mutation(
        "flush-joins-one-that-has-begun",
        "vhostblk/block/io/rounds.py",
        """
          waiting, self._waiting = self._waiting, []
          failure: Exception | None = None
          try:
              await self._operation()
          except Exception as error:
              failure = error
        + waiting, self._waiting = waiting + self._waiting, []
        """,
        "A flush is acknowledged by another one that began before a write that it has to cover.",
        _VOLATILE,
    ),
    Mutation(
        "stale-entries-of-a-corrupt-image",
        f"{_QCOW2}/image.py",
        """
          self.writable = False
        - self.publisher.revoke_all()
        """,
        "The engine still writes to an image that was found corrupt.",
        (*_MAPS, "integration/qcow2/test_corruption.py"),
    ),
    Mutation(
        "overwritable-by-its-first-cluster",
        _PUBLISH,
        """
        - if not (run == expected).all():
        + if not (run[:1] == expected[:1]).all():
              return -1
        """,
        "A long write overwrites data behind its first cluster.",
        _WRITES,
    ),
    Mutation(
        "overwritable-without-leave",
        _PUBLISH,
        """
        - if not entry & OVERWRITE:
        + if not entry & (OVERWRITE | READ):
              return -1
        """,
        "A write changes a cluster that a snapshot shares.",
        (*_WRITES, "integration/qcow2/test_snapshots.py"),
    ),
    Mutation(
        "shared-entry-published-for-writing",
        _MAPPING,
        """
        - flags = np.where(copied, np.uint64(READ | OVERWRITE), np.uint64(READ))
        + flags = np.where(copied | here, np.uint64(READ | OVERWRITE), np.uint64(READ))
        """,
        "The engine writes to a cluster that a snapshot shares.",
        _MAPS,
    ),
    Mutation(
        "subclusters-published-that-are-not-there",
        _MAPPING,
        """
        - result = np.where(alloc & usable[:, None], placed, np.uint64(0))
        + result = np.where(usable[:, None] & ~zero, placed, np.uint64(0))
        """,
        "A subcluster of the backing file reads as garbage, and a write to it gets lost.",
        _MAPS,
    ),
    Mutation(
        "settle-one-lane",
        _PUBLISH,
        """
        - if self._table is not None:
        -     await self._table.settle()
        """,
        "A discarded cluster is reused while the engine writes to it.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "settle-the-other-lane",
        _PUBLISH,
        """
        - if self._busy[former]:
        + if self._busy[former] < 0:
              self._settled = Completion()
        """,
        "A discarded cluster is reused while the Python lane writes to it.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "settle-counts-nothing-in-the-python-lane",
        _PUBLISH,
        """
        - self._busy[phase] += 1
        + self._busy[phase] += 0
          return phase
        """,
        "A discarded cluster is reused while the Python lane writes to it.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "settle-asks-no-queue",
        "vhostblk/engine/extents.py",
        """
        - await user.settle()
        + pass
        """,
        "A discarded cluster is reused while the engine writes to it.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "settle-of-an-engine-without-requests",
        "vhostblk/engine/src/core/port.c",
        """
        - return pending + __atomic_load_n(&port->phase_in_flight[former], __ATOMIC_ACQUIRE);
        + return pending;
        """,
        "A discarded cluster is reused while the engine writes to it.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "discard-does-not-settle",
        f"{_QCOW2}/commit.py",
        """
              await self.sync()
        - await image.publisher.settle()
          image.reader.forget_compressed()
        """,
        "A discarded cluster is reused while a request in it is in flight.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "zeroes-keep-their-entry",
        _ZERO,
        """
              found.words[index] = word
          found.touch(index, index + 1)
        - image.publisher.update(found, index, index + 1)
        """,
        "After a discard the engine still uses the cluster, which is reused.",
        _ZEROES,
    ),
    Mutation(
        "zeroes-of-a-neighbour",
        _ZERO,
        """
        - mask = (2 << last) - (1 << first)
          bitmap = entry.data & ~mask | (entry.zero | mask) << SUBCLUSTERS
        + mask = (4 << last) - (1 << first)
        """,
        "Zeroes change the subcluster behind them, too.",
        _ZEROES,
    ),
    Mutation(
        "zeroes-of-a-compressed-cluster-keep-it",
        _ZERO,
        """
        - give_up = entry.compressed or (unmap and allocated)
        + give_up = unmap and allocated
        """,
        "Zeroes over compressed data are lost: the entry stays a compressed one.",
        (*_ZEROES, *_COMPRESSED),
    ),
    Mutation(
        "discard-shows-the-backing-file",
        _ZERO,
        """
          if geometry.version >= 3:
        -     word |= ZERO
        +     word |= ZERO if word else 0
          if int(found.words[index]) == word:
        """,
        "A discarded cluster shows the backing file's data: a guest's old secrets.",
        _ZEROES,
    ),
    Mutation(
        "discard-frees-before-the-entry-is-written",
        f"{_QCOW2}/image.py",
        """
          elif entry.host >= 0:
        -     self.commit.free(entry.host >> bits, discard=discard)
        +     self.allocator.released(entry.host >> bits)
        +     self.commit.free(entry.host >> bits, discard=discard)
        """,
        "A cluster is allocated again to which the file still refers.",
        _ZEROES,
        equivalent="The refcount is still 1: only the search for free clusters begins there.",
    ),
    Mutation(
        "zeroes-around-hide-data",
        _ZERO,
        """
        - elif piece.kind is not Kind.ZERO:
        + elif piece.kind is Kind.DATA and piece.host < 0:
              return False
        """,
        "Zeroes over part of a cluster zero all of it.",
        _ZEROES,
    ),
    Mutation(
        "zeroes-around-hide-the-backing-file",
        _ZERO,
        """
        - if below is not None and not below.known_zero(piece.offset, piece.length):
        + if below is not None and not below.known_zero(piece.offset, 512):
              return False
        """,
        "Zeroes over part of a cluster hide the backing file's data in the rest.",
        _ZEROES,
    ),
    Mutation(
        "decompressed-clusters-are-kept",
        f"{_QCOW2}/commit.py",
        """
        - image.reader.forget_compressed()
          forgotten, self._forgotten = self._forgotten, set()
        """,
        "A compressed cluster in the place of a former one reads as the former one.",
        ("integration/qcow2/test_reuse.py",),
    ),
    Mutation(
        "forgotten-cluster-that-was-written-again",
        _WRITE,
        """
          elif geometry.external_data:
        -     image.commit.keep(plan.cluster)
        +     pass
        """,
        "In an external data file, a cluster is discarded after it was written again.",
        ("integration/qcow2/test_reuse.py",),
    ),
    Mutation(
        "reads-are-not-settled",
        _NODE,
        """
              await image.reader.read(offset, iov)
          finally:
        -     publisher.end(phase)
        +     pass
        ...
        - phase = publisher.begin()
          try:
              bits, entries = publisher.unit_bits, publisher.entries
        """,
        "A read returns data of another cluster, as its own was discarded meanwhile.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "overwrites-are-not-settled",
        _NODE,
        """
        - phase = publisher.begin()
          try:
              await image.guest_data.write(host, iov)
              image.commit.wrote()
          finally:
        -     publisher.end(phase)
        +     pass
        """,
        "A write changes a cluster that was discarded meanwhile and is reused.",
        ("integration/qcow2/test_settle.py",),
    ),
    Mutation(
        "compressed-data-linked-before-it-is-written",
        _PACKED,
        """
          failures = await gather([write_bytes(image.file, host, data) for host, data in runs])
        - image.commit.wrote()
        """,
        "Entries are written to the file before the compressed data that they refer to.",
        (*_COMPRESSED, "integration/qcow2/test_writes_in_any_order.py"),
    ),
    Mutation(
        "compressed-error-ignored",
        _PACKED,
        """
          for failure in failures:
              if failure is not None:
        -         raise failure
        +         break
        """,
        "A compressed write that failed is acknowledged.",
        _COMPRESSED,
    ),
    Mutation(
        "compressed-over-each-other",
        f"{_QCOW2}/allocator.py",
        """
        - end = start + nbytes
          self._packed_end = end if end & (geometry.cluster_size - 1) else 0
        + end = start + nbytes - 1
        """,
        "The last byte of compressed data is overwritten by the next.",
        _COMPRESSED,
    ),
    Mutation(
        "compressed-without-a-reference",
        f"{_QCOW2}/allocator.py",
        """
          if room:
        -     await refcounts.change(shared, 1, 1)
        +     await refcounts.get(shared)
        """,
        "A host cluster is free while compressed data lies in it.",
        _COMPRESSED,
    ),
    Mutation(
        "compressed-entry-of-one-sector-less",
        f"{_QCOW2}/layout.py",
        """
        - sectors = (offset + length - 1) // COMPRESSED_SECTOR - offset // COMPRESSED_SECTOR
        + sectors = (length - 1) // COMPRESSED_SECTOR
          return COMPRESSED | sectors << shift | offset
        """,
        "Compressed data that crosses into one more sector can't be read.",
        _COMPRESSED,
    ),
)
