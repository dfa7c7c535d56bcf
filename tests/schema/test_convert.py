# SPDX-License-Identifier: Apache-2.0
"""From options to structs: values, and what is said of wrong ones."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schema.qemu import message, needs_qemu
from vhostblk.schema import json_text
from vhostblk.schema.common import BlockdevAioOptions
from vhostblk.schema.drivers.file import BlockdevOptionsFile
from vhostblk.schema.drivers.null import BlockdevOptionsNull
from vhostblk.schema.drivers.raw import BlockdevOptionsRaw
from vhostblk.schema.errors import OptionError
from vhostblk.schema.exports.vhost_user_blk import BlockExportOptionsVhostUserBlk
from vhostblk.schema.objects.iothread import IothreadProperties
from vhostblk.schema.options import blockdev_options, export_options, object_options
from vhostblk.schema.socket import FdSocketAddress, UnixSocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKS: dict[str, Callable[[str], object]] = {
    "blockdev": blockdev_options,
    "export": export_options,
    "object": object_options,
}

RAW = "raw,node-name=x"
EXPORT = "vhost-user-blk,id=e,node-name=n"
UNIX = f"{EXPORT},addr.type=unix,addr.path=/nonexistent/socket"
EXPORT_JSON = (
    '"type":"vhost-user-blk","id":"e","node-name":"n","addr":{"type":"unix","path":"/nonexistent"}'
)
BLOCK_SIZE = "Property e.logical-block-size doesn't take value"

#: Option, argument, message. QEMU says the same of all of these.
REFUSED = [
    ("blockdev", "", "Parameter 'driver' is missing"),
    ("blockdev", "node-name=x", "Parameter 'driver' is missing"),
    ("blockdev", "bogus", "Parameter 'driver' does not accept value 'bogus'"),
    ("blockdev", "driver.x=1", "Parameters 'driver.*' are unexpected"),
    ("blockdev", "null-co", "'node-name' must be specified for the root node"),
    ("blockdev", "file,node-name=x", "Parameter 'filename' is missing"),
    ("blockdev", "file,filename.x=y", "Parameters 'filename.*' are unexpected"),
    ("blockdev", "null-co,node-name=x,bogus=1", "Parameter 'bogus' is unexpected"),
    ("blockdev", "null-co,cache=1", "Invalid parameter type for 'cache', expected: object"),
    ("blockdev", "null-co,cache.0=1", "Invalid parameter type for 'cache', expected: object"),
    ("blockdev", "null-co,cache.bogus=on", "Parameter 'cache.bogus' is unexpected"),
    ("blockdev", "null-co,cache.direct=x", "Parameter 'cache.direct' expects 'on' or 'off'"),
    ("blockdev", "null-co,read-only=1", "Parameter 'read-only' expects 'on' or 'off'"),
    ("blockdev", "null-co,read-only=On", "Parameter 'read-only' expects 'on' or 'off'"),
    ("blockdev", "null-co,read-only.x=on", "Parameters 'read-only.*' are unexpected"),
    ("blockdev", "null-co,discard=x", "Parameter 'discard' does not accept value 'x'"),
    (
        "blockdev",
        "file,filename=a,locking=maybe",
        "Parameter 'locking' does not accept value 'maybe'",
    ),
    ("blockdev", "null-co,size=1k", "Parameter 'size' expects integer"),
    ("blockdev", "null-co,size=1 ", "Parameter 'size' expects integer"),
    ("blockdev", "null-co,size=", "Parameter 'size' expects integer"),
    ("blockdev", "null-co,size=08", "Parameter 'size' expects integer"),
    ("blockdev", "null-co,size=1_0", "Parameter 'size' expects integer"),
    ("blockdev", "null-co,size=9223372036854775808", "Parameter 'size' expects integer"),
    (
        "blockdev",
        "null-co,latency-ns=18446744073709551616",
        "Parameter 'latency-ns' expects integer",
    ),
    ("blockdev", RAW, "Parameter 'file' is missing"),
    ("blockdev", f"{RAW},file.driver=file", "Parameter 'file.filename' is missing"),
    ("blockdev", f"{RAW},file.filename=a", "Parameter 'file.driver' is missing"),
    ("blockdev", f"{RAW},file.driver=bogus", "Parameter 'driver' does not accept value 'bogus'"),
    ("blockdev", f"{RAW},file.0=x", "Invalid parameter type for 'file', expected: BlockdevRef"),
    (
        "blockdev",
        f"{RAW},file.driver=null-co,file.size=1x",
        "Parameter 'file.size' expects integer",
    ),
    ("blockdev", "{", "JSON parse error, premature EOI"),
    ("blockdev", "{}", "Parameter 'driver' is missing"),
    ("blockdev", '{"driver":"null-co"} x', "Expecting at most one JSON value"),
    ("blockdev", '{"driver":"null-co"}}', "Expecting at most one JSON value"),
    ("blockdev", '{"driver":"raw","driver":"file"}', "JSON parse error, duplicate key"),
    ("blockdev", '{"driver":5}', "Invalid parameter type for 'driver', expected: string"),
    ("blockdev", '{"driver":null}', "Invalid parameter type for 'driver', expected: string"),
    (
        "blockdev",
        '{"driver":"null-co","size":"1"}',
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "blockdev",
        '{"driver":"null-co","size":1.5}',
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "blockdev",
        '{"driver":"null-co","size":true}',
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "blockdev",
        '{"driver":"null-co","size":9223372036854775808}',
        "Invalid parameter type for 'size', expected: integer",
    ),
    (
        "blockdev",
        '{"driver":"null-co","latency-ns":18446744073709551616}',
        "Parameter 'latency-ns' expects uint64",
    ),
    (
        "blockdev",
        '{"driver":"null-co","read-only":"on"}',
        "Invalid parameter type for 'read-only', expected: boolean",
    ),
    (
        "blockdev",
        '{"driver":"null-co","read-only":1}',
        "Invalid parameter type for 'read-only', expected: boolean",
    ),
    (
        "blockdev",
        '{"driver":"null-co","node-name":5}',
        "Invalid parameter type for 'node-name', expected: string",
    ),
    (
        "blockdev",
        '{"driver":"null-co","discard":5}',
        "Invalid parameter type for 'discard', expected: string",
    ),
    (
        "blockdev",
        '{"driver":"null-co","cache":5}',
        "Invalid parameter type for 'cache', expected: object",
    ),
    (
        "blockdev",
        '{"driver":"null-co","cache.direct":true}',
        "Parameter 'cache.direct' is unexpected",
    ),
    (
        "blockdev",
        '{"driver":"raw","file":5}',
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    (
        "blockdev",
        '{"driver":"raw","file":null}',
        "Invalid parameter type for 'file', expected: BlockdevRef",
    ),
    ("blockdev", '{"driver":"raw","file":{}}', "Parameter 'file.driver' is missing"),
    (
        "blockdev",
        '{"driver":"raw","file":{"driver":"file","filename":[]}}',
        "Invalid parameter type for 'file.filename', expected: string",
    ),
    ("export", "", "Parameter 'type' is missing"),
    ("export", "bogus", "Parameter 'type' does not accept value 'bogus'"),
    ("export", "vhost-user-blk", "Parameter 'id' is missing"),
    ("export", "vhost-user-blk,id=e", "Parameter 'node-name' is missing"),
    ("export", EXPORT, "Parameter 'addr' is missing"),
    ("export", f"{EXPORT},addr=x", "Invalid parameter type for 'addr', expected: object"),
    ("export", f"{EXPORT},addr.path=x", "Parameter 'addr.type' is missing"),
    ("export", f"{EXPORT},addr.type=bogus", "Parameter 'type' does not accept value 'bogus'"),
    ("export", f"{EXPORT},addr.type=unix", "Parameter 'addr.path' is missing"),
    ("export", f"{EXPORT},addr.type=fd", "Parameter 'addr.str' is missing"),
    ("export", f"{EXPORT},addr.type=inet,addr.host=h", "Parameter 'addr.port' is missing"),
    (
        "export",
        f"{EXPORT},addr.type=inet,addr.host=h,addr.port=1",
        "Only socket address types 'unix' and 'fd' are supported",
    ),
    (
        "export",
        f"{EXPORT},addr.type=vsock,addr.cid=3,addr.port=1",
        "Only socket address types 'unix' and 'fd' are supported",
    ),
    ("export", f"{UNIX},bogus=1", "Parameter 'bogus' is unexpected"),
    ("export", f"{UNIX},num-queues=0", "num-queues must be greater than 0"),
    ("export", f"{UNIX},num-queues=65536", "Parameter 'num-queues' expects uint16_t"),
    ("export", f"{UNIX},num-queues=-1", "Parameter 'num-queues' expects uint16_t"),
    ("export", f"{UNIX},num-queues=1k", "Parameter 'num-queues' expects integer"),
    ("export", f"{UNIX},logical-block-size=513", f"{BLOCK_SIZE} '513', it's not a power of 2"),
    (
        "export",
        f"{UNIX},logical-block-size=256",
        f"{BLOCK_SIZE} 256 (minimum: 512, maximum: 2097152)",
    ),
    (
        "export",
        f"{UNIX},logical-block-size=4M",
        f"{BLOCK_SIZE} 4194304 (minimum: 512, maximum: 2097152)",
    ),
    (
        "export",
        f"{UNIX},logical-block-size=0.001G",
        f"{BLOCK_SIZE} '1073742', it's not a power of 2",
    ),
    *(
        (
            "export",
            f"{UNIX},logical-block-size={text}",
            "Parameter 'logical-block-size' expects size",
        )
        for text in ("x", "", "1.5", "0x", "1e3", "-1", "16E", "16777216T", "1k1", "1kB", ".5k")
    ),
    ("object", "", "Parameter 'qom-type' is missing"),
    ("object", "bogus,id=a", "Parameter 'qom-type' does not accept value 'bogus'"),
    ("object", "iothread", "Parameter 'id' is missing"),
    ("object", "iothread,id=1", "Parameter 'id' expects an identifier"),
    ("object", "iothread,id=a,bogus=1", "Parameter 'bogus' is unexpected"),
    ("object", "iothread,id=a,poll-max-ns=x", "Parameter 'poll-max-ns' expects integer"),
    *(
        (
            "object",
            f"iothread,id=a,{name}=-1",
            f"{name} value must be in range [0, 9223372036854775807]",
        )
        for name in ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-max")
    ),
    ("object", "iothread,id=a,thread-pool-max=0", "bad thread-pool-min/thread-pool-max values"),
    ("object", "iothread,id=a,thread-pool-min=65", "bad thread-pool-min/thread-pool-max values"),
]


@pytest.mark.parametrize(("option", "text", "reason"), REFUSED)
def test_refused(option: str, text: str, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        CHECKS[option](text)
    assert str(caught.value) == reason


@needs_qemu
@pytest.mark.parametrize(("option", "text", "reason"), REFUSED)
def test_qemu_refuses_likewise(option: str, text: str, reason: str) -> None:
    node = ["--blockdev", "null-co,node-name=n"] if option == "export" else []
    assert message(option, text, *node) == reason


@pytest.mark.parametrize(
    ("option", "text", "reason"),
    [
        (
            "export",
            f"{UNIX},logical-block-size=0",
            f"{BLOCK_SIZE} 0 (minimum: 512, maximum: 2097152)",
        ),
        (
            "export",
            f"{UNIX},num-queues=257",
            "num-queues must not be greater than 256, as vhost-user can't number more",
        ),
        (
            "export",
            f"{UNIX},x-vhostblk-serial={'s' * 21}",
            "x-vhostblk-serial takes at most 20 characters, not 21",
        ),
        (
            "export",
            f"{UNIX},x-vhostblk-serial=\u00e4",
            "x-vhostblk-serial takes printable ASCII characters only",
        ),
        (
            "export",
            f"{UNIX},x-vhostblk-socket-mode=0999",
            "x-vhostblk-socket-mode takes octal permissions such as 0660, not 0999",
        ),
        (
            "export",
            f"{UNIX},x-vhostblk-socket-mode=4755",
            "x-vhostblk-socket-mode takes octal permissions such as 0660, not 4755",
        ),
        (
            "export",
            f"{UNIX},x-vhostblk-queue-size=100",
            "x-vhostblk-queue-size must be a power of 2 between 2 and 32768, not 100",
        ),
        (
            "export",
            f"{UNIX},x-vhostblk-queue-size=65536",
            "x-vhostblk-queue-size must be a power of 2 between 2 and 32768, not 65536",
        ),
        (
            "export",
            f"{UNIX},x-vhostblk-queue-size=4294967296",
            "Parameter 'x-vhostblk-queue-size' expects uint32_t",
        ),
        (
            "export",
            f"{UNIX},iothread=a,x-vhostblk-iothreads.0=b",
            "iothread and x-vhostblk-iothreads exclude each other",
        ),
        (
            "export",
            f'{{{EXPORT_JSON},"x-vhostblk-iothreads":[]}}',
            "x-vhostblk-iothreads must name at least one iothread",
        ),
        (
            "export",
            "vhost-user-blk,id=1,node-name=n,addr.type=fd,addr.str=3",
            "Invalid block export id",
        ),
        ("export", "nbd,id=e,node-name=n", "Export type 'nbd' is not available in vhostblk yet"),
        ("export", "fuse,id=e", "Export type 'fuse' is not available in vhostblk yet"),
        ("export", "vduse-blk", "Export type 'vduse-blk' is not available in vhostblk yet"),
        (
            "export",
            f"{UNIX},addr.abstract=on",
            "Abstract sockets are not available in vhostblk yet",
        ),
        ("blockdev", '{"a":nul}', "JSON parse error, invalid keyword 'nul'"),
        ("blockdev", '{"driver":"null-co","size":NaN}', "JSON parse error, stray 'N'"),
        ("blockdev", '{"a":' + "[" * 100_000, "JSON nesting depth limit exceeded"),
        ("blockdev", '{"a":' + "1" * 5000 + "}", "Parameter 'driver' is missing"),
    ],
)
def test_refused_in_our_own_words(option: str, text: str, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        CHECKS[option](text)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "text",
    [
        f"{UNIX},x-vhostblk-iothreads.0=a,x-vhostblk-iothreads.1=b",
        f"{UNIX},x-vhostblk-iothreads.1=b,x-vhostblk-iothreads.0=a",
        f'{{{EXPORT_JSON},"x-vhostblk-iothreads":["a","b"]}}',
    ],
)
def test_a_list(text: str) -> None:
    options = export_options(text)
    assert isinstance(options, BlockExportOptionsVhostUserBlk)
    assert options.iothreads == ["a", "b"]
    assert options.iothread_names() == ["a", "b"]


#: A list of strings here, and one in QEMU whose elements are checked alike.
OUR_LIST = "x-vhostblk-iothreads"
QEMU_LIST = "auth-client-required"
QEMU_LIST_NODE = "rbd,node-name=x,pool=p,image=i"

BAD_LISTS = [
    ("LIST=a", "Invalid parameter type for 'LIST', expected: array"),
    ("LIST.a=b", "Invalid parameter type for 'LIST', expected: array"),
    ("LIST.0.a=b", "Parameters 'LIST.0.*' are unexpected"),
    ("LIST.1=b", "Parameter 'LIST.0' missing"),
    ("LIST.0=a,LIST.x=b", "Parameters 'LIST.*' used inconsistently"),
    ('"LIST":"a"', "Invalid parameter type for 'LIST', expected: array"),
    ('"LIST":{"a":"b"}', "Invalid parameter type for 'LIST', expected: array"),
    ('"LIST":[1]', "Invalid parameter type for 'LIST[0]', expected: string"),
    ('"LIST":["none",{}]', "Invalid parameter type for 'LIST[1]', expected: string"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_LISTS)
def test_bad_lists(text: str, reason: str) -> None:
    text = text.replace("LIST", OUR_LIST)
    with pytest.raises(OptionError) as caught:
        export_options(f"{{{EXPORT_JSON},{text}}}" if text.startswith('"') else f"{UNIX},{text}")
    assert str(caught.value) == reason.replace("LIST", OUR_LIST)


@needs_qemu
@pytest.mark.parametrize(("text", "reason"), BAD_LISTS)
def test_qemu_refuses_bad_lists_likewise(text: str, reason: str) -> None:
    text = text.replace("LIST", QEMU_LIST)
    if text.startswith('"'):
        text = f'{{"driver":"rbd","node-name":"x","pool":"p","image":"i",{text}}}'
    else:
        text = f"{QEMU_LIST_NODE},{text}"
    said = message("blockdev", text)
    assert said is not None
    assert said == reason.replace("LIST", QEMU_LIST)


def test_nested_nodes() -> None:
    assert blockdev_options(
        "raw,node-name=x,offset=0x200,size=-1,file.driver=file,file.filename=a,,b,file.aio=io_uring,"
        "file.cache.direct=on"
    ) == BlockdevOptionsRaw(
        node_name="x",
        offset=512,
        size=-1,
        file=BlockdevOptionsFile(
            filename="a,b",
            aio=BlockdevAioOptions.IO_URING,
            cache=blockdev_options("null-co,node-name=n,cache.direct=on").cache,
        ),
    )


def test_a_reference_by_name() -> None:
    options = blockdev_options("raw,node-name=x,file=")
    assert isinstance(options, BlockdevOptionsRaw)
    assert options.file == ""


@pytest.mark.parametrize(
    "options",
    [
        "null-co,node-name=n,size=1024,read-zeroes=yes",
        '{"driver": "null-co", "node-name": "n", "size": 1024, "read-zeroes": true}',
        "{'driver': 'null-co', 'node-name': \"n\", 'size': 1024, 'read-zeroes': true}",
        {"driver": "null-co", "node-name": "n", "size": 1024, "read-zeroes": True},
        BlockdevOptionsNull(node_name="n", size=1024, read_zeroes=True),
    ],
)
def test_all_forms_mean_the_same(options: str) -> None:
    assert blockdev_options(options) == BlockdevOptionsNull(
        node_name="n", size=1024, read_zeroes=True
    )


def test_defaults_of_an_export() -> None:
    options = export_options(UNIX)
    assert options == BlockExportOptionsVhostUserBlk(
        id="e", node_name="n", addr=UnixSocketAddress(path="/nonexistent/socket")
    )
    assert (options.logical_block_size, options.num_queues) == (512, 1)
    assert not options.writable
    assert not options.share_rw


def test_an_inherited_socket() -> None:
    text = (
        f"{EXPORT},addr.type=fd,addr.str=3,num-queues=2,x-vhostblk-serial=abc,logical-block-size=4k"
    )
    options = export_options(text)
    assert isinstance(options, BlockExportOptionsVhostUserBlk)
    assert options.addr == FdSocketAddress(fd="3")
    assert (options.num_queues, options.serial, options.logical_block_size) == (2, "abc", 4096)


def test_defaults_of_an_iothread() -> None:
    assert object_options("iothread,id=io") == IothreadProperties(
        id="io", poll_max_ns=32768, thread_pool_max=64
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("0x10", 16), ("010", 8), (" 5", 5), ("+5", 5), ("-1", 2**64 - 1), ("0", 0)],
)
def test_unsigned_integers_are_read_as_in_c(text: str, value: int) -> None:
    options = blockdev_options(f"null-co,node-name=n,latency-ns={text}")
    assert isinstance(options, BlockdevOptionsNull)
    assert options.latency_ns == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(["driver", "file", "node-name", "size", "cache", "filename", "x"]),
            below,
        )
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["node-name", "file", "size", "cache", "x"]), json_values))
def test_any_value_is_converted_or_refused(value: dict[str, object]) -> None:
    for driver in ("raw", "null-co", "file"):
        try:
            blockdev_options({"driver": driver, **value})
        except OptionError:
            pass


def _single_quoted(text: str) -> str:
    inner = re.sub(r"\\(.)", lambda m: '"' if m[1] == '"' else m[0], json.dumps(text)[1:-1])
    return "'" + inner.replace("'", "\\'") + "'"


#: QEMU refuses noncharacters, which are in category Cn.
characters = st.characters(exclude_categories=("Cs", "Cn"))


@given(
    st.dictionaries(st.text(characters, max_size=4), st.text(characters, max_size=6), max_size=4)
)
def test_json_strings_may_be_in_single_quotes(value: dict[str, str]) -> None:
    assert json_text.parse(json.dumps(value)) == value
    pairs = [f"{_single_quoted(key)}: {_single_quoted(text)}" for key, text in value.items()]
    assert json_text.parse("{" + ", ".join(pairs) + "}") == value
