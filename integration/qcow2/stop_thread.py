# SPDX-License-Identifier: Apache-2.0
"""`python -m integration.qcow2.stop_thread ID` stops a thread, as a debugger does (ptrace(2)).

It prints "stopped", and resumes the thread when its standard input ends.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
#: Flag of waitpid(2): wait for threads, too.
_WALL = 0x40000000


def main(thread: int) -> None:
    """Stop a thread until standard input ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    for request in (_SEIZE, _INTERRUPT):
        if libc.ptrace(request, thread, None, None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(thread, _WALL)
    print("stopped", flush=True)
    sys.stdin.read()
    libc.ptrace(_DETACH, thread, None, None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
