# SPDX-License-Identifier: Apache-2.0
"""What descriptors this process has open, for tests that look for leaks."""

from __future__ import annotations

import os


def open_fds(kind: str = "") -> set[int]:
    """Return the numbers of the open descriptors whose target begins with `kind`.

    Objects and threads of earlier tests may go at any moment, and close theirs: a test that looks
    for leaks asserts `open_fds() <= before`.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(kind):  # noqa: PTH115
                found.add(int(name))
        except OSError:  # the directory's own descriptor, or one just closed
            pass
    return found
