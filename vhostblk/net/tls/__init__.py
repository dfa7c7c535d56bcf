# SPDX-License-Identifier: Apache-2.0
"""TLS by GnuTLS: credentials, and sessions without I/O.

| module | contains |
|---|---|
| `credentials` | what all credentials have in common, and anonymous ones |
| `x509`, `checks` | certificates, and the check that they make sense |
| `psk` | keys that both sides know |
| `session` | one connection: bytes in, bytes out |
| `verify` | whether a peer's certificate is good |

A session belongs to one thread, which is the event loop's: GnuTLS has no locks, and when it changes
keys, reading also writes.
"""
