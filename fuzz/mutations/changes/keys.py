# SPDX-License-Identifier: Apache-2.0
"""Secrets, TLS and authorization: who may is somebody else, or secrets are seen."""

from __future__ import annotations

from fuzz.mutations.mutation import Mutation

_SESSION = "vhostblk/net/tls/session.py"
_VERIFY = "vhostblk/net/tls/verify.py"
_PSK = "vhostblk/net/tls/psk.py"
_HANDSHAKE = "vhostblk/net/handshake.py"
_WEBSOCKET = "vhostblk/net/websocket.py"
_SOCKET = "vhostblk/chardev/socket.py"
_STREAM = "vhostblk/chardev/stream.py"
_LIST_FILE = "vhostblk/objects/authz_list_file.py"
_RULES = "vhostblk/objects/authz_rules.py"
_SECRET = "vhostblk/objects/secret.py"
_BYTES = "vhostblk/crypto/secret_bytes.py"
_REDACTION = "vhostblk/qmp/redaction.py"

_SESSIONS = ("tests/tls/test_session.py",)
_AUTHORIZATION = ("tests/objects/test_authorization.py",)
_HIDDEN = ("tests/objects/test_hidden.py", "tests/objects/test_secrets.py", "tests/crypto")

MUTATIONS = (
    Mutation(
        "denied-client-is-served",
        _HANDSHAKE,
        """
        - if not await is_allowed(keys, authz_id, session.peer_name):
        + await is_allowed(keys, authz_id, session.peer_name)
        + if not session.peer_name:
        """,
        "A client whom the rules deny gives commands.",
        ("tests/tls/test_connections.py::test_a_list_file_that_is_replaced",),
    ),
    Mutation(
        "certificates-are-not-verified",
        _SESSION,
        """
        - if credentials.kind != gnutls.CRD_CERTIFICATE or not credentials.verify_peer:
        + if credentials.kind != gnutls.CRD_CERTIFICATE or credentials.server:
        """,
        "A client without a certificate gives commands.",
        _SESSIONS,
    ),
    Mutation(
        "status-of-a-chain-is-ignored",
        _VERIFY,
        """
        - if status[0]:
        + if status[0] & gnutls.CERT_SIGNER_NOT_FOUND:
              raise TlsError(reason_of(status[0]))
        """,
        "A client with a revoked certificate gives commands.",
        _SESSIONS,
    ),
    Mutation(
        "any-host-will-do",
        _VERIFY,
        """
        - if b"\\0" in name or not lib.gnutls_x509_crt_check_hostname(certificates[0], name):
        + if b"\\0" in name:
        """,
        "Another server of the same authority gets the data.",
        _SESSIONS,
    ),
    Mutation(
        "old-versions",
        _SESSION,
        """
        - _NO_OLD_VERSIONS = ":-VERS-TLS1.0:-VERS-TLS1.1"
        + _NO_OLD_VERSIONS = ""
        """,
        "A connection can be had down to TLS 1.0.",
        ("tests/tls/test_session.py::test_a_priority_of_old_versions",),
    ),
    Mutation(
        "nothing-behind-new-keys",
        _SESSION,
        """
          elif count in (gnutls.E_AGAIN, gnutls.E_INTERRUPTED):
              # After a message of its own, such as new keys, the library looks no further.
        -     if len(self._transport.incoming) in (0, before):
        -         break
        +     break
        """,
        "What a peer sends behind new keys waits until it sends more.",
        ("tests/tls/test_session.py::test_keys_are_changed_while_data_flows",),
    ),
    Mutation(
        "removed-names-stay",
        _PSK,
        """
        - if state != self._state:
        + if self._state is None:
        """,
        "A client whose key was removed from the file connects.",
        ("tests/tls/test_session.py::test_keys_come_and_go",),
    ),
    Mutation(
        "handshakes-without-end",
        _SOCKET,
        """
        - if len(self._handshakes) >= MAX_HANDSHAKES:
        -     next(iter(self._handshakes)).cancel()
        """,
        "Clients that say nothing use up all descriptors.",
        ("tests/tls/test_hostile.py::test_handshakes_are_bounded_in_number",),
    ),
    Mutation(
        "answers-without-end",
        _STREAM,
        """
        - elif len(self._unsent) >= HIGH_WATER and not self._stalled:
        + elif len(self._unsent) >= HIGH_WATER and self._stalled:
        """,
        "A client that does not read the answers to its pings uses up the memory.",
        ("tests/tls/test_hostile.py::test_a_peer_that_makes_us_answer_and_does_not_read",),
    ),
    Mutation(
        "frames-without-masks",
        _WEBSOCKET,
        """
        - if not masked:
        + if not masked and opcode & _CONTROL:
        """,
        "A web page makes requests that a proxy takes for something else.",
        ("tests/net/test_websocket.py",),
    ),
    Mutation(
        "broken-list-allows",
        _LIST_FILE,
        """
              self._rules = load(self._path)
          except VhostblkError as error:
        -     self._rules = None
        """,
        "Somebody who was taken out of a list that has a mistake is still allowed.",
        _AUTHORIZATION,
    ),
    Mutation(
        "last-rule-counts",
        _RULES,
        """
        - for rule in rules.rules:
        + for rule in reversed(rules.rules):
        """,
        "Somebody is allowed whom an earlier rule denies.",
        _AUTHORIZATION,
    ),
    Mutation(
        "secret-is-kept",
        _SECRET,
        """
          def remove(self) -> None:
              \"\"\"Wipe the secret.\"\"\"
        -     self._value.wipe()
        """,
        "A removed secret stays in memory as long as somebody knows its object.",
        _HIDDEN,
    ),
    Mutation(
        "memory-is-not-zeroed",
        _BYTES,
        """
        - self._map[:] = bytes(len(self._map))
          with suppress(BufferError):  # somebody still looks at it, and sees zeroes
        """,
        "A removed secret can be read by who looks at it.",
        _HIDDEN,
    ),
    Mutation(
        "traces-show-secrets",
        _REDACTION,
        """
        - if isinstance(kind, str) and "secret" in kind:
        + if isinstance(kind, str) and "secrets" in kind:
        """,
        "A secret is in the log.",
        ("tests/objects/test_hidden.py::test_no_log_has_it_at_any_level",),
    ),
)
