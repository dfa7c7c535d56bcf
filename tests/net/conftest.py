# SPDX-License-Identifier: Apache-2.0
"""A server's certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tls.certificates import SERVER, Maker, lay_out

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tls_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `tls-creds-x509` wants it."""
    directory: Path = tmp_path_factory.mktemp("certificates")
    make = Maker(directory)
    authority = make.authority("the authority")
    server = make.issue(authority, "localhost", SERVER)
    return lay_out(directory / "good", ca=authority.cert, server=server)
