# SPDX-License-Identifier: Apache-2.0
"""Intended differences: those with names, and rules that apply wherever a command is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.differential.differences import BOTH, Difference, ours_is_refused
from tests.differential.script import ScriptError
from tests.qmp_exports import differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True)
class Rule:
    """A difference that may occur wherever these commands are run; no commands: at any step.

    Either `holds` says whether it explains two outcomes, or `without` removes it from each of them.
    """

    reason: str
    commands: frozenset[str] = frozenset()
    holds: Callable[[Any, Any], bool] | None = None
    without: Callable[[Any], Any] | None = None
    #: Whether later steps can't be compared, although both succeeded or both failed.
    cuts: bool = False
    versions: frozenset[int] = BOTH


def answer(commands: str, ours: str, theirs: str, reason: str, *, cuts: bool = False) -> Rule:
    """Make a rule from patterns for the texts (`said`) of our outcome and of theirs."""

    def holds(our: Any, their: Any) -> bool:
        return bool(re.search(ours, said(our)) and re.search(theirs, said(their)))

    return Rule(reason, frozenset(commands.split()), holds, cuts=cuts)


def said(outcome: Any) -> str:
    """Return an outcome as text: the error's text, "return", or the lines."""
    if not isinstance(outcome, dict):
        return "\n".join(map(str, outcome))
    return str(outcome["error"]["desc"]) if "error" in outcome else "return"


def texts(change: Callable[[str], str]) -> Callable[[Any], Any]:
    """Make a function that applies `change` to all strings in an outcome."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(member) for name, member in value.items()}
        if isinstance(value, list):
            return [without(item) for item in value]
        return change(value) if isinstance(value, str) else value

    return without


def find(name: str) -> Difference:
    """Return the difference with a name; raises ScriptError if there is none."""
    found = globals().get(name, getattr(differences, name, None))
    if not isinstance(found, Difference):
        raise ScriptError(f"no difference is called {name}")
    return found


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why two outcomes differ."""

    reason: str
    cuts: bool


def expected(
    rules: Iterable[Rule], version: int, command: str, ours: Any, theirs: Any
) -> Explanation | None:
    """Return the explanation of two outcomes that differ; None: there is none."""
    reasons: list[str] = []
    differ = _succeeded(ours) != _succeeded(theirs)
    applying = [
        rule
        for rule in rules
        if version in rule.versions and (not rule.commands or command in rule.commands)
    ]
    for rule in applying:
        if rule.without is not None:
            our, their = rule.without(ours), rule.without(theirs)
            if (our, their) != (ours, theirs):
                reasons.append(rule.reason)
            ours, theirs = our, their
    if ours == theirs:
        return Explanation("; ".join(reasons), cuts=differ)
    for rule in applying:
        if rule.holds is not None and rule.holds(ours, theirs):
            return Explanation(rule.reason, rule.cuts or differ)
    return None


def _succeeded(outcome: Any) -> bool:
    return not (isinstance(outcome, dict) and "error" in outcome)


def _same_but(change: Callable[[Any], Any]) -> Callable[[Any, Any], bool]:
    """Make a check that outcomes are the same after `change`."""
    return lambda ours, theirs: bool(change(ours) == change(theirs))


def _without_file_lengths(value: Any) -> Any:
    """Remove the lengths of files from an answer that lists nodes."""
    if isinstance(value, list):
        return [_without_file_lengths(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("drv") == "file":
        value = {**value, "image": {**value["image"], "virtual-size": None}}
    return {name: _without_file_lengths(member) for name, member in value.items()}


def _without_dirty_flags(value: Any) -> Any:
    """Remove the dirty flags of qcow2 images; a node option also makes refcounts lazy."""
    if isinstance(value, list):
        return [_without_dirty_flags(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("format") == "qcow2" and "dirty-flag" in value:
        value = {**value, "dirty-flag": None}
    return {name: _without_dirty_flags(member) for name, member in value.items()}


def _without_sizes(value: Any) -> Any:
    """Remove the sizes of `raw` and of filters from an answer that lists nodes."""
    if isinstance(value, list):
        return [_without_sizes(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("drv") != "qcow2" and "image" in value:
        value = {**value, "image": {**value["image"], "virtual-size": None}}
    return {name: _without_sizes(member) for name, member in value.items()}


def _ends_early(ours: Any, theirs: Any) -> bool:
    """Return whether theirs are the same lines, then errors, as of a smaller disk."""
    if not isinstance(ours, list | tuple) or not isinstance(theirs, list | tuple):
        return False
    rest = theirs[len(ours) :]
    return bool(
        rest
        and list(theirs[: len(ours)]) == list(ours)
        and all(re.fullmatch(r"0x[0-9a-f]+: IOERR", line) for line in rest)
    )


SECRET_SHOWN = Difference(
    "QEMU shows secrets.",
    holds=ours_is_refused("Property 'secret.data' is not readable"),
)
PROPERTY_WITHOUT_EFFECT = Difference(
    "QEMU lets properties be set that it has read for the last time.",
    holds=ours_is_refused("Property cannot be set after initialization"),
)
LIST_FILE = Difference(
    "QEMU's schema and its object type have different names, so that none can be made.",
    holds=lambda ours, theirs: "return" in ours and "error" in theirs,
)

_NODES = frozenset({"query-named-block-nodes"})
_IMAGE_IN_USE = re.compile(r" Is another process using the image \[[^]]*\]\?")

#: Rules for cases in which vhostblk is better than QEMU, or only different.
RULES = (
    Rule(
        "vhostblk's qcow2 grows its file ahead of allocations, and truncates it when closed.",
        _NODES,
        without=_without_file_lengths,
    ),
    Rule(
        "vhostblk marks an image dirty later: when its metadata is written to the file.",
        _NODES,
        without=_without_dirty_flags,
    ),
    answer("$", "^status 0", "^status 3", "QEMU leaks clusters."),
    Rule(
        "Messages about image locks name the image.",
        without=texts(lambda text: _IMAGE_IN_USE.sub("", text).replace("lock.", "lock")),
    ),
    Rule(
        "Nodes above one that is resized have the new size at once; in QEMU they keep the old one.",
        _NODES,
        holds=_same_but(_without_sizes),
        cuts=True,
    ),
    Rule(
        "An export whose node is replaced by a smaller one has the new size; in QEMU the old one.",
        frozenset({"io"}),
        holds=_ends_early,
    ),
    answer(
        "",
        "Failed to get .* lock",
        "return",
        "vhostblk's exports share their images with no other writer, unless they are told to.",
    ),
    answer(
        "block-dirty-bitmap-clear block-dirty-bitmap-add block-dirty-bitmap-remove"
        " block-dirty-bitmap-enable block-dirty-bitmap-disable block-dirty-bitmap-merge"
        " x-debug-block-dirty-bitmap-sha256 transaction",
        "return",
        "Dirty bitmap '.*' not found",
        "QEMU loses the bitmaps of nodes when it can't inactivate some of them.",
    ),
    answer(
        "blockdev-reopen",
        "^setting detect-zeroes to unmap is not allowed without setting discard",
        "return",
        "An option that is left out goes back to its default; QEMU keeps the former discard.",
    ),
    Rule(
        "QEMU writes nothing to a disk with persistent bitmaps once a reopen as read-only failed.",
        frozenset({"io"}),
        holds=lambda ours, theirs: {*ours} == {"done"} and {*theirs} == {"IOERR"},
        cuts=True,
    ),
    answer(
        "blockdev-add blockdev-reopen blockdev-snapshot blockdev-snapshot-sync transaction",
        "are the same file, '|would create a cycle: both consist of the file",
        "return",
        "A node can't have one file twice, for a backing image or a copy; QEMU allows it.",
        cuts=True,
    ),
    answer(
        "blockdev-snapshot transaction",
        "^The overlay has (a size|data) of its own, but node '.*' needs that of",
        "return",
        "Nodes that keep something of the data below don't get other data; in QEMU they go wrong.",
        cuts=True,
    ),
    answer(
        "blockdev-reopen",
        "return",
        "^Permission conflict on node '.*': permissions 'write, resize' are both required by node",
        "A preallocate filter drops what it has preallocated before users bypass it.",
    ),
    answer(
        "blockdev-add blockdev-reopen blockdev-create",
        "return",
        "does(n't| not) support the option '(cache|overlap-check|[a-z]+-child-perms)'",
        "An object or a list of options may be empty.",
    ),
)
