# SPDX-License-Identifier: Apache-2.0
"""SCSI persistent reservations: what the helper's program and the daemon have in common.

| module | is about |
|---|---|
| `layout` | the protocol's, SCSI's and SG_IO's constants and structures |
| `wire` | the protocol between a helper and its clients, sans-I/O |
| `sense` | sense data, and what failures become in SCSI |

Nothing here needs numpy, asyncio or the engine.
"""
