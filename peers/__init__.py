# SPDX-License-Identifier: Apache-2.0
"""Programs of other projects that tests and benchmarks hold vhostblk against.

Debian 12 has QEMU 7.2. Later versions are unpacked from later Debian releases; `debian` says how.
`python -m peers` does it, and every `make` target that needs them.
"""
