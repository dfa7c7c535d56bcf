# SPDX-License-Identifier: Apache-2.0
"""A read-only view of a directory as a FAT file system: an example of a vhostblk driver.

| module | is about |
|---|---|
| `tree` | the directory: looked through once, read later |
| `names` | long names, and the short ones beside them |
| `layout` | boot sectors and directory entries, as bytes |
| `volume` | which byte of the disk is which byte of what |
| `driver` | options, and the driver |
"""
