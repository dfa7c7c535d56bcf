# SPDX-License-Identifier: Apache-2.0
"""Harness of the integration tests.

| module | is about |
|---|---|
| `cpio` | the archive format of an initramfs |
| `kernel` | the installed kernel and the modules that a guest needs |
| `initramfs` | the guest's root file system, built from the host's files |
| `python` | Python for programs inside the guest |
| `agent` | running shell steps inside the guest |
| `monitor` | QEMU's QMP |
| `machine` | the QEMU process |
| `newer` | guests with what Debian 12 has not: a later QEMU and a later kernel |
| `server` | the storage daemon under test |
| `image` | the disk image seen from outside |
| `system` | systems that boot from a disk of their own: `debian`, `miniature` |

The harness is synchronous: every wait has a deadline, and a deadline that passes raises
`GuestError` with the end of the guest's console.
"""
