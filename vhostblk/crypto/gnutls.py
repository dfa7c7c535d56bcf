# SPDX-License-Identifier: Apache-2.0
"""GnuTLS, opened when it is first needed.

cffi's ABI mode is used: nothing is compiled, and the package does not depend on the library.
Declarations are those of GnuTLS 3.7; all later libraries with this name are compatible.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vhostblk.crypto.errors import LibraryError, SecretError

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = "libgnutls.so.30"

E_SUCCESS = 0
E_FATAL_ALERT_RECEIVED = -12
E_AGAIN = -28
E_REHANDSHAKE = -37
E_SHORT_MEMORY_BUFFER = -51
E_INTERRUPTED = -52
E_REQUESTED_DATA_NOT_AVAILABLE = -56
E_PREMATURE_TERMINATION = -110

SERVER = 1
CLIENT = 2
FORMAT_DER = 0
FORMAT_PEM = 1
#: `gnutls_credentials_type_t`.
CRD_CERTIFICATE = 1
CRD_ANON = 2
CRD_PSK = 4
CERT_REQUEST = 1
SHUT_WR = 1
PSK_KEY_HEX = 1
SEC_PARAM_MEDIUM = 35
CIPHER_AES_256_CBC = 5
KEY_UPDATE_PEER = 1
ALERT_FATAL = 2
ALERT_BAD_CERTIFICATE = 42
ALERT_ACCESS_DENIED = 49

#: `gnutls_certificate_status_t`.
CERT_INVALID = 1 << 1
CERT_REVOKED = 1 << 5
CERT_SIGNER_NOT_FOUND = 1 << 6
CERT_INSECURE_ALGORITHM = 1 << 8

#: Key usages.
KEY_DIGITAL_SIGNATURE = 128
KEY_KEY_CERT_SIGN = 4
PURPOSE_SERVER = "1.3.6.1.5.5.7.3.1"
PURPOSE_CLIENT = "1.3.6.1.5.5.7.3.2"
PURPOSE_ANY = "2.5.29.37.0"

_DECLARATIONS = """
typedef struct { unsigned char *data; unsigned int size; } gnutls_datum_t;
typedef struct gnutls_session_int *gnutls_session_t;
typedef struct gnutls_certificate_credentials_st *gnutls_certificate_credentials_t;
typedef struct gnutls_anon_server_credentials_st *gnutls_anon_server_credentials_t;
typedef struct gnutls_anon_client_credentials_st *gnutls_anon_client_credentials_t;
typedef struct gnutls_psk_server_credentials_st *gnutls_psk_server_credentials_t;
typedef struct gnutls_psk_client_credentials_st *gnutls_psk_client_credentials_t;
typedef struct gnutls_dh_params_int *gnutls_dh_params_t;
typedef struct gnutls_x509_crt_int *gnutls_x509_crt_t;
typedef struct api_cipher_hd_st *gnutls_cipher_hd_t;
typedef long time_t;

const char *gnutls_check_version(const char *);
const char *gnutls_strerror(int);
int gnutls_error_is_fatal(int);
extern void *(*gnutls_malloc)(size_t);

int gnutls_cipher_init(gnutls_cipher_hd_t *, int, const gnutls_datum_t *, const gnutls_datum_t *);
int gnutls_cipher_decrypt2(gnutls_cipher_hd_t, const void *, size_t, void *, size_t);
void gnutls_cipher_deinit(gnutls_cipher_hd_t);

int gnutls_certificate_allocate_credentials(gnutls_certificate_credentials_t *);
void gnutls_certificate_free_credentials(gnutls_certificate_credentials_t);
int gnutls_certificate_set_x509_trust_file(gnutls_certificate_credentials_t, const char *, int);
int gnutls_certificate_set_x509_crl_file(gnutls_certificate_credentials_t, const char *, int);
int gnutls_certificate_set_x509_key_file2(gnutls_certificate_credentials_t, const char *,
    const char *, int, const char *, unsigned int);
int gnutls_certificate_set_known_dh_params(gnutls_certificate_credentials_t, int);
void gnutls_certificate_set_dh_params(gnutls_certificate_credentials_t, gnutls_dh_params_t);
void gnutls_certificate_server_set_request(gnutls_session_t, int);
int gnutls_certificate_verify_peers2(gnutls_session_t, unsigned int *);
const gnutls_datum_t *gnutls_certificate_get_peers(gnutls_session_t, unsigned int *);

int gnutls_dh_params_init(gnutls_dh_params_t *);
int gnutls_dh_params_import_pkcs3(gnutls_dh_params_t, const gnutls_datum_t *, int);
void gnutls_dh_params_deinit(gnutls_dh_params_t);

int gnutls_anon_allocate_server_credentials(gnutls_anon_server_credentials_t *);
void gnutls_anon_free_server_credentials(gnutls_anon_server_credentials_t);
int gnutls_anon_set_server_known_dh_params(gnutls_anon_server_credentials_t, int);
void gnutls_anon_set_server_dh_params(gnutls_anon_server_credentials_t, gnutls_dh_params_t);
int gnutls_anon_allocate_client_credentials(gnutls_anon_client_credentials_t *);
void gnutls_anon_free_client_credentials(gnutls_anon_client_credentials_t);

typedef int (*psk_function)(gnutls_session_t, const char *, gnutls_datum_t *);
int gnutls_psk_allocate_server_credentials(gnutls_psk_server_credentials_t *);
void gnutls_psk_free_server_credentials(gnutls_psk_server_credentials_t);
void gnutls_psk_set_server_credentials_function(gnutls_psk_server_credentials_t, psk_function);
int gnutls_psk_set_server_known_dh_params(gnutls_psk_server_credentials_t, int);
void gnutls_psk_set_server_dh_params(gnutls_psk_server_credentials_t, gnutls_dh_params_t);
int gnutls_psk_allocate_client_credentials(gnutls_psk_client_credentials_t *);
void gnutls_psk_free_client_credentials(gnutls_psk_client_credentials_t);
int gnutls_psk_set_client_credentials(gnutls_psk_client_credentials_t, const char *,
    const gnutls_datum_t *, int);

int gnutls_x509_crt_init(gnutls_x509_crt_t *);
void gnutls_x509_crt_deinit(gnutls_x509_crt_t);
int gnutls_x509_crt_import(gnutls_x509_crt_t, const gnutls_datum_t *, int);
int gnutls_x509_crt_list_import(gnutls_x509_crt_t *, unsigned int *, const gnutls_datum_t *, int,
    unsigned int);
time_t gnutls_x509_crt_get_expiration_time(gnutls_x509_crt_t);
time_t gnutls_x509_crt_get_activation_time(gnutls_x509_crt_t);
int gnutls_x509_crt_get_basic_constraints(gnutls_x509_crt_t, unsigned int *, unsigned int *, int *);
int gnutls_x509_crt_get_key_usage(gnutls_x509_crt_t, unsigned int *, unsigned int *);
int gnutls_x509_crt_get_key_purpose_oid(gnutls_x509_crt_t, unsigned int, void *, size_t *,
    unsigned int *);
int gnutls_x509_crt_list_verify(const gnutls_x509_crt_t *, unsigned int, const gnutls_x509_crt_t *,
    unsigned int, const void *, unsigned int, unsigned int, unsigned int *);
int gnutls_x509_crt_get_dn(gnutls_x509_crt_t, char *, size_t *);
unsigned int gnutls_x509_crt_check_hostname(gnutls_x509_crt_t, const char *);

typedef ssize_t (*pull_function)(void *, void *, size_t);
typedef ssize_t (*push_function)(void *, const void *, size_t);
int gnutls_init(gnutls_session_t *, unsigned int);
void gnutls_deinit(gnutls_session_t);
int gnutls_priority_set_direct(gnutls_session_t, const char *, const char **);
int gnutls_credentials_set(gnutls_session_t, int, void *);
void gnutls_session_set_ptr(gnutls_session_t, void *);
void *gnutls_session_get_ptr(gnutls_session_t);
void gnutls_transport_set_ptr(gnutls_session_t, void *);
void gnutls_transport_set_push_function(gnutls_session_t, push_function);
void gnutls_transport_set_pull_function(gnutls_session_t, pull_function);
int gnutls_handshake(gnutls_session_t);
ssize_t gnutls_record_send(gnutls_session_t, const void *, size_t);
ssize_t gnutls_record_recv(gnutls_session_t, void *, size_t);
int gnutls_bye(gnutls_session_t, int);
int gnutls_alert_send(gnutls_session_t, int, int);
int gnutls_alert_send_appropriate(gnutls_session_t, int);
int gnutls_session_key_update(gnutls_session_t, unsigned int);
"""


class Library:
    """The library: `lib` has its functions, `ffi` is for making arguments."""

    def __init__(self) -> None:
        from cffi import FFI

        #: What a datum refers to lives as long as the datum.
        self._kept: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self.ffi: Any = FFI()
        self.ffi.cdef(_DECLARATIONS)
        try:
            self.lib: Any = self.ffi.dlopen(LIBRARY)
        except OSError as error:
            raise LibraryError(
                f"TLS and encrypted secrets need GnuTLS: {LIBRARY} is not installed"
            ) from error
        if not self.lib.gnutls_check_version(b"3.6.13"):
            raise LibraryError("TLS and encrypted secrets need GnuTLS 3.6.13 or later")

    def description(self, code: int) -> str:
        """Return the library's description of an error."""
        text: bytes = self.ffi.string(self.lib.gnutls_strerror(code))
        return text.decode(errors="replace")

    def datum(self, view: memoryview | bytes) -> Any:
        """Return a `gnutls_datum_t` that refers to bytes."""
        # Of a slice, so that the view itself can be released whatever becomes of the datum.
        data = self.ffi.from_buffer("unsigned char[]", view[:])
        made = self.ffi.new("gnutls_datum_t *", {"data": data, "size": len(view)})
        self._kept[made] = data
        return made

    def new(self, kind: str, make: Callable[[Any], int], free: Callable[[Any], object]) -> Any:
        """Make an object of the library that is freed with its last reference.

        Raises SecretError with the library's description alone.
        """
        pointer = self.ffi.new(f"{kind} *")
        code = make(pointer)
        if code < 0:
            raise SecretError(self.description(code))
        return self.ffi.gc(pointer[0], free)


_lock = threading.Lock()
_load = functools.cache(Library)


def library() -> Library:
    """Return the library, opened; raises LibraryError."""
    with _lock:  # both the loop and a thread may be the first
        return _load()


def decrypt_cbc(data: memoryview, key: memoryview, iv: memoryview) -> None:
    """Decrypt AES-256-CBC in place; raises SecretError, or LibraryError."""
    gnutls = library()
    ffi, lib = gnutls.ffi, gnutls.lib
    key_datum, iv_datum = gnutls.datum(key), gnutls.datum(iv)
    cipher = gnutls.new(
        "gnutls_cipher_hd_t",
        lambda made: lib.gnutls_cipher_init(made, CIPHER_AES_256_CBC, key_datum, iv_datum),
        lib.gnutls_cipher_deinit,
    )
    buffer = ffi.from_buffer(data[:], require_writable=True)
    code = lib.gnutls_cipher_decrypt2(cipher, buffer, len(data), buffer, len(data))
    if code < 0:
        raise SecretError(f"Cannot decrypt the secret: {gnutls.description(code)}")
