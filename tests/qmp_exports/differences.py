# SPDX-License-Identifier: Apache-2.0
"""Where vhostblk answers QMP commands otherwise than QEMU's storage daemon, and why.

Steps of the script (`tests.qmp_exports.script`) refer to a `Difference`. All other answers are
compared as they are, but for what `normalized` takes out. A difference that no longer shows fails
the test, so that the list stays true.
"""

from __future__ import annotations

import re
from typing import Any

from tests.differential.differences import Difference, ours_is_refused

# Exports and objects.

#: Debian builds the storage daemon without them.
_EXTRA_TYPES = frozenset({"authz-pam", "tls-cipher-suites"})

IOTHREAD_IN_USE = Difference(
    "QEMU lets go of an iothread that an export runs on: its 7.2 then crashes. vhostblk refuses.",
    holds=ours_is_refused("object 'io' is in use, can not be deleted"),
)
SAFE_WITH_CLIENT = Difference(
    "QEMU's documentation says that mode 'safe' fails while clients are connected, but vhost-user "
    "front-ends don't count there. They do in vhostblk.",
    holds=ours_is_refused("export 'e' still in use"),
)
SOCKET_IN_USE = Difference(
    "QEMU takes a socket's path away from whoever listens there. vhostblk refuses.",
    holds=lambda ours, theirs: "return" in theirs and "another process listens" in ours["desc"],
)
BLOCK_SIZE = Difference(
    "QEMU 10 says it in other words than 7.2; vhostblk says it as 7.2.",
    frozenset({10}),
    lambda ours, theirs: "power of 2" in theirs["desc"] and "class" in ours,
)
NOT_YET = Difference(
    "There are no other export types and objects in vhostblk yet.",
    holds=lambda ours, _: (
        "does not accept value" in ours["desc"] or "not available in vhostblk yet" in ours["desc"]
    ),
)
NBD_SERVER = Difference(
    "There is no NBD server in vhostblk yet.",
    holds=ours_is_refused("The NBD server is not available in vhostblk yet"),
)
ROOT = Difference(
    "QEMU 7.2 has no /backend.",
    frozenset({7}),
    lambda ours, theirs: (
        [info for info in ours["return"] if info["name"] != "backend"] == theirs["return"]
    ),
)
FEWER_TYPES = Difference(
    "vhostblk has fewer object types, some that QEMU was built without, and types of its own.",
    holds=lambda ours, theirs: all(
        kind in theirs["return"]
        or kind["name"] in _EXTRA_TYPES
        or kind["name"].startswith("x-vhostblk-")
        for kind in ours["return"]
    ),
)


def _has_all(ours: Any, theirs: Any) -> bool:
    """Tell whether all that QEMU says is there."""
    if isinstance(theirs, dict):
        return isinstance(ours, dict) and all(
            name in ours and _has_all(ours[name], value) for name, value in theirs.items()
        )
    if isinstance(theirs, list):
        return (
            isinstance(ours, list) and len(ours) == len(theirs) and all(map(_has_all, ours, theirs))
        )
    return bool(ours == theirs)


NEW_MEMBERS = Difference(
    "QEMU 7.2 doesn't have all members of the answer yet.", frozenset({7}), _has_all
)
NEW_COMMAND = Difference("QEMU 7.2 doesn't have the command.", frozenset({7}))
NO_INACTIVE_NODES = Difference("QEMU 7.2 can't add inactive nodes.", frozenset({7}))
VERSION = Difference(
    "Each tells its own version.",
    holds=lambda ours, theirs: ours["return"].keys() == theirs["return"].keys(),
)
COMMANDS = Difference(
    "vhostblk lacks commands of what it doesn't have yet (jobs, snapshots, images' "
    "creation), and has its own.",
    holds=lambda ours, theirs: all(
        info in theirs["return"]
        or info["name"].startswith("x-vhostblk-")
        or info["name"] == "blockdev-set-active"  # not in QEMU 7.2
        or info["name"] == "query-pr-managers"  # in QEMU's system emulator
        for info in ours["return"]
    ),
)


# Character devices.

INHERITED = Difference(
    "Of an inherited socket without a name vhostblk tells the descriptor.",
    holds=lambda ours, theirs: (
        [info["label"] for info in ours["return"]] == [info["label"] for info in theirs["return"]]
    ),
)
CHARDEV_BACKENDS = Difference(
    "vhostblk has no mux, hub and parallel devices.",
    holds=lambda ours, theirs: all(info in theirs["return"] for info in ours["return"]),
)


# What is the same but for its order or its names.


def normalized(command: str, answer: Any) -> Any:
    """Return an answer without what means nothing.

    QEMU lists commands, types, properties and character devices in the order of its hash tables.
    Nodes without names get some, which are never the same twice.
    """
    if command in _UNORDERED and "return" in answer:
        key = "label" if command == "query-chardev" else "name"
        answer = {"return": sorted(answer["return"], key=lambda info: str(info[key]))}
    return _without_made_up_names(answer)


_UNORDERED = frozenset(
    {
        "query-commands",
        "qom-list",
        "qom-list-types",
        "qom-list-properties",
        "query-chardev",
        "query-chardev-backends",
    }
)


def _without_made_up_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_made_up_names(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_without_made_up_names(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"#block\d+", "#block", value)
    return value
