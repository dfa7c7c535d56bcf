# SPDX-License-Identifier: Apache-2.0
"""SCSI persistent reservations: what the helper's program and the daemon have in common.

| module | is about |
|---|---|
| `layout` | the protocol's, SCSI's and SG_IO's constants and structures |
| `wire` | the protocol between a helper and its clients, sans-I/O |
| `sense` | sense data, and what failures become in SCSI |
| `manager` | what nodes send commands by |
| `client` | a manager that has a helper send them |
| `kernel` | a manager that has the kernel send them |
| `codec` | commands and data as bytes, for the daemon's own commands |

The first three are the helper's too, which needs neither numpy, asyncio nor the engine.
"""
