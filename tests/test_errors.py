# SPDX-License-Identifier: Apache-2.0
"""Errors: what they know, and how they are worded."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Any

import pytest

from vhostblk import Daemon, VhostblkError
from vhostblk.block.errors import NodeNotFoundError, NoNode
from vhostblk.errors import (
    errno_of,
    error_context,
    errors_as,
    log_failure,
    os_error,
    reason,
)
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


class _LayerError(VhostblkError):
    """A family of errors."""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errno.ENOSPC, "No space left on device"),
        (os_error(errno.EIO), "Input/output error"),
        (os_error(errno.EIO, "the image is corrupt"), "the image is corrupt"),
        (OSError("without an errno"), "without an errno"),
        (ValueError("embedded null byte"), "embedded null byte"),
        (MemoryError(), "MemoryError"),
        (VhostblkError("complete"), "complete"),
    ],
)
def test_reasons(error: BaseException | int, text: str) -> None:
    assert reason(error) == text


def test_an_os_error_becomes_one_of_a_layer() -> None:
    with (
        pytest.raises(_LayerError) as caught,
        errors_as(_LayerError, "Could not open 'a'", file="a"),
    ):
        raise os_error(errno.EACCES)
    error = caught.value
    assert str(error) == "Could not open 'a': Permission denied"
    assert (error.file, error.errno) == ("a", errno.EACCES)
    assert isinstance(error.__cause__, PermissionError)
    with pytest.raises(_LayerError, match=r"^Permission denied$"), errors_as(_LayerError):
        raise os_error(errno.EACCES)


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), errors_as(_LayerError, "what"):
        raise ZeroDivisionError
    with errors_as(_LayerError, "what"):
        pass


def test_context_is_added_and_kept() -> None:
    with (
        pytest.raises(_LayerError) as caught,
        error_context(node="outer", operation="blockdev-add"),
        error_context(node="inner"),
    ):
        raise _LayerError("no", file="f")
    error = caught.value
    assert (error.node, error.file, error.operation) == ("inner", "f", "blockdev-add")
    assert (error.option, error.errno) == (None, None)


def test_an_error_knows_what_its_cause_knows() -> None:
    inner = _LayerError("no", node="below", option="file.filename")
    inner.__cause__ = os_error(errno.ENOENT)
    outer = VhostblkError("--blockdev: no", node="above")
    outer.__cause__ = inner
    assert (outer.node, outer.option, outer.errno) == ("above", "file.filename", errno.ENOENT)


def test_an_error_may_be_its_own_cause() -> None:
    error = _LayerError("no")
    error.__cause__ = error
    error.add_context(node="disk")
    assert (error.node, error.errno) == ("disk", None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (os_error(errno.ENOSPC), errno.ENOSPC),
        (OSError("without an errno"), errno.EIO),
        (OSError(2**40, "no errno of C's"), errno.EIO),
        (OSError(-5, "negative"), errno.EIO),
        (OSError("x", "a text"), errno.EIO),
        (ZeroDivisionError(), errno.EIO),
        (VhostblkError("no"), errno.EIO),
    ],
)
def test_what_exports_report(error: BaseException, code: int) -> None:
    assert errno_of(error) == code


def test_words_for_a_missing_node_take_any_name() -> None:
    error = NodeNotFoundError("{name}%s{0}", NoNode.DEVICE_OR_NODE, "{x}")
    assert str(error) == "Cannot find device='{x}' nor node-name='{name}%s{0}'"
    assert error.node == "{name}%s{0}"


def failure(call: Callable[[Daemon], Awaitable[object]]) -> VhostblkError:
    """Return the error of a call of the daemon."""

    async def main() -> VhostblkError:
        async with Daemon() as daemon:
            with pytest.raises(VhostblkError) as caught:
                await call(daemon)
            return caught.value

    return asyncio.run(main())


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    options: dict[str, Any] = {"driver": "file", "filename": path}
    error = failure(
        lambda daemon: daemon.add_blockdev({"driver": "raw", "node-name": "disk", "file": options})
    )
    assert str(error) == f"Could not open '{path}': No such file or directory"
    assert (error.file, error.errno) == (path, errno.ENOENT)
    assert error.operation == "blockdev-add"
    assert error.node is not None
    assert error.node.startswith("#block")  # the node that was to open the file


def test_an_option_that_is_wrong() -> None:
    error = failure(
        lambda daemon: daemon.add_blockdev(
            "driver=raw,node-name=a,file.driver=file,file.filename=f,file.bad=1"
        )
    )
    assert isinstance(error, OptionError)
    assert str(error) == "Parameter 'file.bad' is unexpected"
    assert (error.option, error.operation) == ("file.bad", "blockdev-add")


def test_a_node_that_is_not_there() -> None:
    error = failure(lambda daemon: daemon.remove_blockdev("gone"))
    assert isinstance(error, NodeNotFoundError)
    assert error.node == "gone"


def test_failures_in_the_background_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("oops")

    async def main() -> None:
        for body in (fail(), asyncio.sleep(0), asyncio.sleep(60)):
            task = asyncio.create_task(body, name="housekeeping")
            task.add_done_callback(log_failure)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0)

    asyncio.run(main())
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "housekeeping: oops")
    assert record.exc_info is not None
