# SPDX-License-Identifier: Apache-2.0
"""Programs of other projects with which tests and benchmarks compare vhostblk.

Debian 12 has QEMU 7.2. Later versions are unpacked from later Debian releases (see `debian`), by
`python -m peers` and by every `make` target that needs them.
"""
