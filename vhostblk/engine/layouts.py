# SPDX-License-Identifier: Apache-2.0
"""Layouts that C and Python share, as numpy dtypes; `check` holds them against the C compiler's."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

#: One virtio-blk request, `struct vb_request`. `iov_first` and `iov_count` say which segments of a
#: batch hold its data (or take it), `length` bytes in all. `status_addr` is a host address; 0: the
#: chain has no room for a status.
REQUEST = np.dtype(
    [
        ("sector", "<u8"),
        ("length", "<u8"),
        ("status_addr", "<u8"),
        ("type", "<u4"),
        ("iov_first", "<u4"),
        ("iov_count", "<u4"),
        ("head", "<u2"),
        ("status", "u1"),
        ("reserved", "u1"),
    ]
)

#: A request that an iothread hands to Python, `struct vb_upcall`; `offset` and `length` in bytes.
UPCALL = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u8"),
        ("iov_first", "<u4"),
        ("iov_count", "<u4"),
        ("tag", "<u2"),
        ("kind", "<u2"),
        ("flags", "<u2"),
        ("reserved", "<u2"),
    ]
)

#: `struct iovec` on 64-bit Linux.
IOVEC = np.dtype([("base", "<u8"), ("len", "<u8")])

#: `REQUEST` to `struct`, which turns records into tuples in a third of the time.
RECORD = struct.Struct("<QQQIIIHBB")

#: Kinds of requests that are counted apart: the order of `enum vb_stat_kind`.
STAT_KINDS = ("read", "write", "flush", "unmap")

#: Statistics of a queue, `struct vb_stats`. `latency[kind][n]` counts requests that took at least
#: 2**n ns and less than 2**(n+1).
STATS = np.dtype(
    [
        ("operations", "<u8", (4,)),
        ("bytes", "<u8", (4,)),
        ("failed", "<u8", (4,)),
        ("total_ns", "<u8", (4,)),
        ("merged", "<u8", (4,)),
        ("invalid", "<u8"),
        ("upcalls", "<u8"),
        ("sweeps", "<u8"),
        ("notified", "<u8"),
        ("kicks", "<u8"),
        ("latency", "<u8", (4, 32)),
    ]
)


#: The layouts, by their names in C.
SHARED = {"struct vb_request": REQUEST, "struct vb_upcall": UPCALL, "struct vb_stats": STATS}


def check(ffi: Any) -> None:
    """Raise ImportError where the extension was built from other layouts."""
    for name, layout in SHARED.items():
        _check_one(ffi, name, layout)


def _check_one(ffi: Any, name: str, layout: DTypeLike) -> None:
    dtype = np.dtype(layout)
    assert dtype.fields is not None
    fields = {key: int(field[1]) for key, field in dtype.fields.items()}
    compiled = {key: field.offset for key, field in ffi.typeof(name).fields}
    if fields != compiled or dtype.itemsize != ffi.sizeof(name):
        raise ImportError(f"the compiled engine has another layout of {name}: rebuild it")
