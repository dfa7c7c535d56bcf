# SPDX-License-Identifier: Apache-2.0
"""Makes the first inputs of `fuzz.vhost_user`: `python -m fuzz.vhost_user_seeds DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path
from struct import pack

from fuzz import vhost_user as fuzz
from vhostblk.vhost_user.layout import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    VERSION,
    BackendRequest,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.session import PROTOCOL_FEATURES

#: Choices of descriptors (`_Frontend.fds`).
_KICK, _MEMORY, _SMALL, _BOTH, _SOCKET, _INFLIGHT, _CALL = 1, 2, 3, 5, 6, 11, 12

_FEATURES = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 9


def _message(request: Request, payload: bytes = b"", fds: int = 0, *, ack: bool = False) -> bytes:
    flags = (FLAG_NEED_REPLY if ack else 0) | fds << 4
    return bytes([request]) + fuzz.MESSAGE.pack(flags, len(payload)) + payload


def _table(*regions: tuple[int, int, int, int]) -> bytes:
    return pack("=II", len(regions), 0) + b"".join(pack("=QQQQ", *each) for each in regions)


_GUEST = (0, fuzz.MEMORY_BYTES, fuzz.USER, 0)
_EXTRA = (1 << 32, 8 * 4096, 0x4000_0000, 0)


_PROTOCOL = PROTOCOL_FEATURES & ~ProtocolFeature.LOG_SHMFD & ~ProtocolFeature.INBAND_NOTIFICATIONS


def _hello(features: int = _FEATURES, protocol: int = _PROTOCOL) -> bytes:
    return b"".join(
        (
            _message(Request.GET_FEATURES),
            _message(Request.GET_PROTOCOL_FEATURES),
            _message(Request.SET_PROTOCOL_FEATURES, pack("=Q", protocol)),
            _message(Request.GET_QUEUE_NUM),
            _message(Request.SET_OWNER, ack=True),
            _message(Request.GET_CONFIG, pack("=III", 0, 60, 0) + bytes(60)),
            _message(Request.SET_FEATURES, pack("=Q", features), ack=True),
            _message(Request.SET_MEM_TABLE, _table(_GUEST), _MEMORY, ack=True),
        )
    )


def _rings(index: int = 0, base: int = 0) -> bytes:
    desc, avail, used = (fuzz.USER + at for at in (fuzz.DESC, fuzz.AVAIL, fuzz.USED))
    return b"".join(
        (
            _message(Request.SET_VRING_NUM, pack("=II", index, fuzz.RING)),
            _message(Request.SET_VRING_BASE, pack("=II", index, base)),
            _message(Request.SET_VRING_ADDR, pack("=IIQQQQ", index, 0, desc, used, avail, 0)),
        )
    )


def _start(index: int = 0, base: int = 0) -> bytes:
    return b"".join(
        (
            _rings(index, base),
            _message(Request.SET_VRING_CALL, pack("=Q", index), _CALL),
            _message(Request.SET_VRING_KICK, pack("=Q", index), _KICK, ack=True),
            _message(Request.SET_VRING_ENABLE, pack("=II", index, 1), ack=True),
        )
    )


def _requests(*kinds: int) -> bytes:
    return b"".join(
        bytes([fuzz.REQUEST]) + fuzz.ORDER.pack(kind, number, 1, number) + bytes([fuzz.TURN, 3])
        for number, kind in enumerate(kinds)
    )


def _answer(request: BackendRequest) -> bytes:
    data = HEADER.pack(request, VERSION | FLAG_REPLY, 8) + bytes(8)
    return bytes([fuzz.ANSWER, len(data)]) + data


def _stop(index: int = 0) -> bytes:
    return _message(Request.GET_VRING_BASE, pack("=II", index, 0))


def _inflight(fds: int = 0) -> bytes:
    asked = pack("=QQHHI", 0, 0, 1, fuzz.RING, 0)
    given = pack("=QQHHI", 1 << 14, 0, 1, fuzz.RING, 0)
    return _message(Request.GET_INFLIGHT_FD, asked) + _message(
        Request.SET_INFLIGHT_FD, given, _INFLIGHT, ack=True
    )


def seeds() -> dict[str, bytes]:
    """Return a script for each thing that front-ends do."""
    extra = pack("=Q", 0) + pack("=QQQQ", *_EXTRA)
    return {
        "requests": _hello() + _start() + _requests(0, 1, 4, 8, 11, 13, 14, 99) + _stop(),
        "inflight": _hello() + _inflight() + _start() + _requests(0, 1) + _stop(),
        "memory": b"".join(
            (
                _hello() + _start() + _requests(0),
                _message(Request.GET_MAX_MEM_SLOTS),
                _message(Request.ADD_MEM_REG, extra, _SMALL, ack=True),
                _requests(1, 0),
                bytes([fuzz.TRUNCATE, 1]),
                _message(Request.REM_MEM_REG, extra, ack=True),
                _message(Request.SET_MEM_TABLE, _table(_GUEST, _EXTRA), _BOTH, ack=True),
                _requests(0, 0, 0) + _stop(),
            )
        ),
        "postcopy": b"".join(
            (
                _hello() + _message(Request.POSTCOPY_ADVISE),
                _message(Request.POSTCOPY_LISTEN, ack=True),
                _message(Request.SET_MEM_TABLE, _table(_GUEST), _MEMORY),
                _message(Request.SET_MEM_TABLE, bytes(8)),
                _message(Request.ADD_MEM_REG, extra, _SMALL),
                _message(Request.ADD_MEM_REG, bytes(8)),
                _start() + _requests(0, 1),
                _message(Request.POSTCOPY_END) + _requests(1, 0) + _stop(),
            )
        ),
        "status": b"".join(
            (
                _hello() + _message(Request.SET_STATUS, pack("=Q", 15)) + _start(),
                _requests(0) + _message(Request.GET_STATUS) + _message(Request.RESET_DEVICE),
                _hello() + _start() + _message(Request.SET_STATUS, pack("=Q", 0), ack=True),
            )
        ),
        "changes": b"".join(
            (
                _hello() + _message(Request.SET_BACKEND_REQ_FD, b"", _SOCKET, ack=True),
                _start() + bytes([fuzz.RESIZED, fuzz.DRAIN]) + _requests(4),
                _message(Request.SET_CONFIG, pack("=III", 32, 1, 0) + b"\1", ack=True),
                _message(Request.SET_VRING_ENABLE, pack("=II", 0, 0), ack=True),
                _requests(0) + _message(Request.SET_VRING_ENABLE, pack("=II", 0, 1), ack=True),
                _start() + _message(Request.SET_VRING_ERR, pack("=Q", 0), _CALL, ack=True),
                _message(Request.RESET_OWNER, ack=True),
            )
        ),
        "inband": b"".join(
            (
                _hello(_FEATURES, _PROTOCOL | ProtocolFeature.INBAND_NOTIFICATIONS),
                _message(Request.SET_BACKEND_REQ_FD, b"", _SOCKET, ack=True),
                _rings() + _message(Request.VRING_KICK, pack("=II", 0, 0), ack=True),
                _message(Request.SET_VRING_ENABLE, pack("=II", 0, 1), ack=True),
                _requests(0, 1) + _message(Request.VRING_KICK, pack("=II", 0, 0)),
                bytes([fuzz.TURN, 9]) + _answer(BackendRequest.VRING_CALL) + _requests(0),
                _answer(BackendRequest.VRING_CALL) + bytes([fuzz.ANSWER, 0]) + _stop(),
            )
        ),
        "no-event-idx": _hello(1 << 32) + _start() + _requests(0, 1, 4) + _stop(),
        "raw": bytes([fuzz.RAW, 12]) + pack("=III", 1, 1, 0) + bytes([fuzz.RAW, 3, 1, 2, 3]),
    }


def main(target: Path) -> None:
    """Write each script for both lanes, and for disks that answer at once or later."""
    for name, script in seeds().items():
        for flags in (fuzz.WRITABLE, fuzz.EXPRESS | fuzz.WRITABLE, fuzz.SLOW | fuzz.MANY_QUEUES):
            (target / f"{name}-{flags}").write_bytes(bytes([flags]) + script)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
