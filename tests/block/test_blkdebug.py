# SPDX-License-Identifier: Apache-2.0
"""Rules and configuration files of `blkdebug`, apart from what is held against QEMU."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.block.support import (
    RW,
    MemoryNode,
    backend_on,
    fails_with,
    options,
    read_bytes,
    run,
    write_bytes,
)
from vhostblk.block.drivers.blkdebug_config import parse_config, read_config
from vhostblk.block.drivers.blkdebug_rules import Rules
from vhostblk.block.errors import BlockError
from vhostblk.block.graph.backend import BlockBackend
from vhostblk.block.graph.graph import Graph
from vhostblk.block.graph.node import BlockLimits
from vhostblk.schema.base import UNSET
from vhostblk.schema.drivers.blkdebug import (
    BlkdebugEvent,
    BlkdebugInjectErrorOptions,
    BlkdebugIOType,
    BlkdebugSetStateOptions,
)

if TYPE_CHECKING:
    from pathlib import Path

events = st.sampled_from(list(BlkdebugEvent))
rules = st.one_of(
    st.builds(
        BlkdebugInjectErrorOptions,
        event=events,
        state=st.integers(0, 3),
        iotype=st.sampled_from([UNSET, *BlkdebugIOType]),
        errno=st.integers(0, 133),
        sector=st.integers(-1, 99),
        once=st.booleans(),
        immediately=st.booleans(),
        delay_ns=st.integers(0, 99),
    ),
    st.builds(
        BlkdebugSetStateOptions, event=events, state=st.integers(0, 3), new_state=st.integers(1, 3)
    ),
)


def text_of(rule: BlkdebugInjectErrorOptions | BlkdebugSetStateOptions) -> str:
    if isinstance(rule, BlkdebugSetStateOptions):
        return (
            f'[set-state]\nevent = "{rule.event.value}"\nstate="{rule.state}"\n'
            f'new_state = "{rule.new_state}"\n'
        )
    lines = [
        "[inject-error]",
        f'event = "{rule.event.value}" trailing',
        f'  state   =   "{rule.state}"',
        f'errno = "{rule.errno:#x}"',
        f'sector = "{rule.sector}"',
        f'once = "{"on" if rule.once else "no"}"',
        f'immediately = "{"yes" if rule.immediately else "off"}"',
        f'delay-ns = "{rule.delay_ns}"',
        "",
    ]
    if isinstance(rule.iotype, BlkdebugIOType):
        lines.insert(1, f'iotype = "{rule.iotype.value}"')
    return "\n".join(lines)


@settings(max_examples=60, deadline=None)
@given(st.lists(rules, max_size=5))
def test_a_configuration_says_what_the_options_say(given_rules: list[Any]) -> None:
    # "state=..." without white space before "=" is part of the name, as in QEMU.
    text = "# rules\n\n" + "".join(map(text_of, given_rules)).replace("state=", "state =")
    assert parse_config(text) == given_rules


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='[]"= \n#abnevtio-_0129\x00é', max_size=300))
def test_any_text_is_rules_or_refused(text: str) -> None:
    message = ""
    try:
        parse_config(text)
    except BlockError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('event = "none"', "no group defined"),
        ("[other]\n", "There is no option group 'other'"),
        ("[inject-error]\n \n", "parse error"),
        ('[inject-error]\nx = "1"\n', "Invalid parameter 'x'"),
        ('[inject-error]\nerrno = "5"\n', "Missing event name for rule"),
        ('[inject-error]\nevent = "x"\n', "invalid parameter value: x"),
        ('[inject-error]\nevent = "none"\niotype = "x"\n', "invalid parameter value: x"),
        ('[inject-error]\nevent = "none"\nerrno = "x"\n', "Parameter 'errno' expects a number"),
        ('[inject-error]\nevent = "none"\nerrno\n', "Parameter 'errno' expects a number"),
        ('[inject-error]\nevent = "none"\nonce = "x"\n', "Parameter 'once' expects 'on' or 'off'"),
        ('[set-state "1"]\nevent = "none"\n', "Parameter 'id' expects an identifier"),
        (
            '[set-state "a"]\nevent = "none"\n[set-state "a"]\nevent = "none"\n',
            "Duplicate ID 'a' for set-state",
        ),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(BlockError) as caught:
        parse_config(text)
    assert str(caught.value) == message


def test_lines_are_cut_where_qemu_cuts_them() -> None:
    comment = "#" + "x" * 1022
    (rule,) = parse_config(f'{comment}[set-state]\nevent = "none"')
    assert rule == BlkdebugSetStateOptions(event=BlkdebugEvent.NONE, new_state=0)


def test_files_that_are_none(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2 << 20)
    for path, reason in ((tmp_path, "Is a directory"), (large, "File too large")):
        with pytest.raises(BlockError) as caught:
            read_config(str(path))
        assert str(caught.value) == f"Could not read blkdebug config file: {reason}"


def test_errors_stay_until_an_event_arms_others() -> None:
    chosen = Rules(
        [
            BlkdebugInjectErrorOptions(event=BlkdebugEvent.NONE, errno=1, state=1),
            BlkdebugInjectErrorOptions(event=BlkdebugEvent.PWRITEV, errno=2, state=2),
            BlkdebugSetStateOptions(event=BlkdebugEvent.L2_LOAD, new_state=2),
        ]
    )

    def code() -> int | None:
        rule = chosen.error_for(BlkdebugIOType.READ, 0, 512)
        return rule.errno if rule else None

    found = [code()]
    for event in ("none", "pwritev", "l2_load", "none", "pwritev"):
        chosen.take_event(event)
        found.append(code())
    assert found == [None, 1, 1, 1, 1, 2]


def test_a_driver_announces_to_its_primary_child() -> None:
    async def main() -> None:
        graph = Graph()
        await graph.add(options(driver="null-co", node_name="n", size=8192, read_zeroes=True))
        rule = {"event": "l2_load", "errno": 28, "once": True}
        await graph.add(options(driver="blkdebug", node_name="d", image="n", inject_error=[rule]))
        parent = await graph.add(options(driver="raw", node_name="r", file="d"))
        backend = BlockBackend("test", RW)
        backend.attach(graph, parent)
        assert backend.extent_map() is None
        parent.debug_event("l2_update")
        assert await read_bytes(backend, 0, 512) == bytes(512)
        parent.debug_event("l2_load")
        with fails_with(errno.ENOSPC):
            await read_bytes(backend, 0, 512)
        assert await read_bytes(backend, 0, 512) == bytes(512)
        await backend.detach()
        await graph.close()

    run(main)


def test_a_write_whose_padding_cant_be_read_fails() -> None:
    """QEMU goes on and writes what happens to be in its buffer."""

    async def main() -> None:
        node = MemoryNode(8192, BlockLimits(request_alignment=512))
        node.data[:] = b"\x11" * 8192
        told: list[str] = []
        node.take_debug_event = told.append
        _, backend = backend_on(node)

        async def fail(_offset: int, _iov: Any) -> None:
            raise OSError(errno.EIO, "injected")

        node.preadv = fail  # type: ignore[method-assign, assignment]
        with fails_with(errno.EIO):
            await write_bytes(backend, 100, b"x" * 100)
        assert node.data == b"\x11" * 8192
        assert told == ["pwritev_rmw_head", "pwritev_rmw_tail"]

    run(main)
