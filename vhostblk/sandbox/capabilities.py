# SPDX-License-Identifier: Apache-2.0
"""Capabilities of root, or those that a service manager has granted."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from vhostblk.sandbox.layout import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_IPC_LOCK,
    CAP_NET_BIND_SERVICE,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    CAP_SYS_RAWIO,
    CAP_SYS_RESOURCE,
    CAPABILITY_VERSION_3,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhostblk.sandbox.kernel import Kernel

#: Opening images and sockets of other users, changing the group of a socket.
FILES = frozenset({CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_CHOWN, CAP_FOWNER})
#: Locked memory for io_uring on kernels before 5.12.
MEMORY = frozenset({CAP_IPC_LOCK, CAP_SYS_RESOURCE})
#: Character devices at ports below 1024.
NETWORK = frozenset({CAP_NET_BIND_SERVICE})
#: SCSI commands that change a device's state.
RAW_IO = frozenset({CAP_SYS_RAWIO})
#: Device mapper.
DEVICE_MAPPER = frozenset({CAP_SYS_ADMIN})
#: Changing the user.
IDENTITY = frozenset({CAP_SETUID, CAP_SETGID})

_HEADER = struct.Struct("=Ii")
#: effective, permitted, inheritable; the lower and the upper half of the sets.
_SETS = struct.Struct("=6I")


def keep_only(kernel: Kernel, kept: Iterable[int]) -> None:
    """Drop all others for ever, in this thread and those it starts later. Raises OSError."""
    mask = sum(1 << capability for capability in kept)
    drop_bounds(kernel, mask)
    effective, allowed = _get(kernel)
    _set(kernel, effective & mask, allowed & mask)


def make_effective(kernel: Kernel, kept: Iterable[int]) -> int:
    """Drop all others, make the permitted ones of `kept` effective, and return these.

    This affects this thread and those it starts later. Raises OSError.
    """
    mask = sum(1 << capability for capability in kept)
    _, allowed = _get(kernel)
    _set(kernel, allowed & mask, allowed & mask)
    return allowed & mask


def permitted(kernel: Kernel) -> int:
    """Return the mask of this thread's permitted capabilities. Raises OSError."""
    return _get(kernel)[1]


def drop_bounds(kernel: Kernel, mask: int = 0) -> None:
    """Clear the bounding set, as far as that is allowed."""
    try:
        kernel.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        for capability in range(64):
            if not mask >> capability & 1:
                kernel.call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    except OSError:
        pass  # past the last one (EINVAL), or no CAP_SETPCAP (EPERM)


def _get(kernel: Kernel) -> tuple[int, int]:
    """Return the effective and the permitted set."""
    buffer = ctypes.create_string_buffer(_SETS.size)
    kernel.call("capget", _HEADER.pack(CAPABILITY_VERSION_3, 0), buffer)
    low_effective, low_allowed, _, effective, allowed, _ = _SETS.unpack(buffer.raw)
    return low_effective | effective << 32, low_allowed | allowed << 32


def _set(kernel: Kernel, effective: int, allowed: int) -> None:
    low = 0xFFFFFFFF
    sets = _SETS.pack(effective & low, allowed & low, 0, effective >> 32, allowed >> 32, 0)
    kernel.call("capset", _HEADER.pack(CAPABILITY_VERSION_3, 0), sets)
