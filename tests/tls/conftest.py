# SPDX-License-Identifier: Apache-2.0
"""Certificates, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tls.certificates import Places, States

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Directories of credentials in all states."""
    made: Path = tmp_path_factory.mktemp("tls")
    certificates = made / "made"
    certificates.mkdir()
    return Places(made, States(certificates))
