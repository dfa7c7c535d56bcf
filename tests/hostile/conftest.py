# SPDX-License-Identifier: Apache-2.0
"""One daemon a lane for all cases: each leaves it as it was, which is checked after each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.frontend.scene import Scene
from vhostblk.engine import load
from vhostblk.virtio_blk.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=list(Lane), ids=lambda lane: lane.value)
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Run the daemon on a lane, with a read-only export besides."""
    if request.param is Lane.EXPRESS and load() is None:
        pytest.skip("no compiled engine")
    directory = tmp_path_factory.mktemp(request.param.value)
    path = directory / "readonly.sock"
    more = ["--blockdev", "driver=null-co,node-name=fixed,size=1048576,read-zeroes=on"]
    more += [
        "--export",
        f"vhost-user-blk,id=fixed,node-name=fixed,addr.type=unix,addr.path={path}",
    ]
    large = directory / "large.sock"
    more += ["--blockdev", f"driver=null-co,node-name=large,size={64 << 30},read-zeroes=on"]
    more += [
        "--export",
        f"vhost-user-blk,id=large,node-name=large,addr.type=unix,addr.path={large}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VHOSTBLK_LANE", request.param.value)
        scene = Scene(directory, more)
    scene.read_only, scene.large = path, large
    try:
        yield scene
        scene.close()
    finally:
        scene.daemon.kill()


@pytest.fixture
def scene(daemon: Scene) -> Iterator[Scene]:
    """Have the daemon as it was before, afterwards."""
    yield daemon
    daemon.check()
