# SPDX-License-Identifier: Apache-2.0
"""`vhostblk-pr-helper`: sends SCSI persistent reservation commands for QEMU, which may not.

The kernel lets only privileged processes (CAP_SYS_RAWIO) send PERSISTENT RESERVE OUT. QEMU passes
such commands, with the device's descriptor, to a helper over a Unix socket
(`docs/interop/pr-helper.rst` in QEMU). This is such a helper; QEMU's own is `qemu-pr-helper`.

| module | is about |
|---|---|
| `sg` | SG_IO |
| `multipath`, `transport_ids` | multipath maps, through libmpathpersist |
| `commands` | one command on one descriptor |
| `connection`, `server` | sockets and threads |
| `compiled`, `src` | connections whose plain requests compiled code serves |
| `privileges` | capabilities, user, system calls |
| `arguments`, `listen`, `trace`, `helper` | the program |

The protocol and sense data are in `vhostblk.reservations`. Nothing here needs numpy, asyncio or the
engine: the helper is small, and starts in a moment. Its compiled code is an extension of its own.
"""
