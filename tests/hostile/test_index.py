# SPDX-License-Identifier: Apache-2.0
"""Every case of the lists has a test: `test_N_…` in one of these modules."""

from __future__ import annotations

import importlib
import re

import pytest

#: Name of the list, its number of cases, where its tests are. Each module runs on both lanes.
LISTS = {
    "guest": (14, ("tests.hostile.test_guest",)),
    "front-end": (
        10,
        ("tests.frontend.test_hostile_frontend", "tests.hostile.test_frontend"),
    ),
    "slow": (6, ("tests.hostile.test_slow",)),
}


@pytest.mark.parametrize("name", LISTS)
def test_every_case_has_a_test(name: str) -> None:
    cases, modules = LISTS[name]
    found = {
        int(match[1])
        for module in modules
        for member in dir(importlib.import_module(module))
        if (match := re.match(r"test_(\d+)_", member))
    }
    assert found >= set(range(1, cases + 1))
