# SPDX-License-Identifier: Apache-2.0
"""Authorization by the account rules of PAM, whose library is opened when it is first needed."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any, ClassVar

from vhostblk.crypto.errors import LibraryError
from vhostblk.errors import errors_as
from vhostblk.net.errors import AuthorizationError
from vhostblk.objects.authz import AuthzObject
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.authz import AuthZPAMProperties

if TYPE_CHECKING:
    from vhostblk.objects.base import Surroundings
    from vhostblk.schema.object import ObjectOptions

LIBRARY = "libpam.so.0"

#: What PAM's own files are, and those that its usual modules read.
PLACES = (
    *("/etc/pam.d", "/etc/pam.conf", "/etc/security", "/etc/login.defs", "/etc/environment"),
    *(
        "/etc/shadow",
        "/etc/nologin",
        "/etc/group",
        "/etc/gshadow",
        "/run/nologin",
        "/var/run/nologin",
    ),
)

_SUCCESS = 0
_SILENT = 0x8000


class _Conversation(ctypes.Structure):
    """`struct pam_conv`; a module that wants to ask the user something fails."""

    _fields_ = (("conv", ctypes.c_void_p), ("appdata_ptr", ctypes.c_void_p))


@functools.cache
def _library() -> Any:
    with errors_as(LibraryError, "authz-pam needs PAM"):
        library = ctypes.CDLL(LIBRARY)
    handle = ctypes.c_void_p
    library.pam_start.argtypes = [
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Conversation)),
        ctypes.POINTER(handle),
    ]
    library.pam_acct_mgmt.argtypes = [handle, ctypes.c_int]
    library.pam_end.argtypes = [handle, ctypes.c_int]
    library.pam_strerror.argtypes = [handle, ctypes.c_int]
    library.pam_strerror.restype = ctypes.c_char_p
    return library


class AuthzPamObject(AuthzObject):
    """What the service's account rules allow; authentication was the other side's proof."""

    options_type: ClassVar[type[ObjectOptions]] = AuthZPAMProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType("authz-pam", "authz", interface="user-creatable", properties={"service": "string"})
    )
    reads_files: ClassVar[bool] = True
    blocks = True

    options: AuthZPAMProperties

    def __init__(self, options: AuthZPAMProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        _library()

    @property
    def files(self) -> list[str]:
        """What PAM reads each time."""
        return list(PLACES)

    def is_allowed(self, identity: str) -> bool:
        """Ask PAM; raises AuthorizationError, with its reason."""
        pam = _library()
        handle, conversation = ctypes.c_void_p(), _Conversation()
        service, user = (
            text.encode("utf-8", "surrogateescape") for text in (self.options.service, identity)
        )
        if b"\0" in service + user:
            raise AuthorizationError("a name with a zero byte can't be given to PAM")
        code = pam.pam_start(service, user, ctypes.byref(conversation), ctypes.byref(handle))
        if code != _SUCCESS:
            raise AuthorizationError(
                f"Unable to start PAM transaction: {_description(pam, None, code)}"
            )
        code = pam.pam_acct_mgmt(handle, _SILENT)
        description = _description(pam, handle, code)
        pam.pam_end(handle, code)
        if code != _SUCCESS:
            raise AuthorizationError(f"Unable to authorize user '{identity}': {description}")
        return True


def _description(pam: Any, handle: Any, code: int) -> str:
    text: bytes = pam.pam_strerror(handle, code)
    return text.decode(errors="replace")
