# SPDX-License-Identifier: Apache-2.0
"""Adds the compiled engine to the build; everything else is in pyproject.toml.

The extension is optional: where it can't be built (no compiler, no liburing), the installation goes
on without it and vhostblk serves on the Python lane, with a pool of threads for file I/O.
"""

from setuptools import setup

setup(cffi_modules=["vhostblk/engine/build.py:ffibuilder"])
