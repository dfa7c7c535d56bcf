# SPDX-License-Identifier: Apache-2.0
"""Adds the compiled extensions to the build; everything else is in pyproject.toml.

They are optional: where the engine can't be built (no compiler, no liburing), the installation goes
on without it and vhostblk serves on the Python lane, with a pool of threads for file I/O. Without
its extension vhostblk-pr-helper serves in Python.
"""

from setuptools import setup

setup(
    cffi_modules=[
        "vhostblk/engine/build.py:ffibuilder",
        "vhostblk/pr/build.py:ffibuilder",
    ]
)
