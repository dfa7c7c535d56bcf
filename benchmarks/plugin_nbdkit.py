# SPDX-License-Identifier: Apache-2.0
"""The disk of `benchmarks.plugin_driver` for nbdkit, which brings a Python of its own."""

# mypy: ignore-errors
# ruff: noqa: D103 -- the functions are those of nbdkit-python-plugin(3).

import os

import nbdkit

API_VERSION = 2
DATA = bytes(range(256)) * 8192
MASK = (1 << 20) - 1


def thread_model():
    return getattr(nbdkit, "THREAD_MODEL_" + os.environ["THREAD_MODEL"])


def open(readonly):  # noqa: A001
    return 1


def get_size(handle):
    return 1 << 30


def pread(handle, buffer, offset, flags):
    start = offset & MASK
    buffer[:] = DATA[start : start + len(buffer)]


def pwrite(handle, buffer, offset, flags):
    pass
