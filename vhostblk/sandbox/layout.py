# SPDX-License-Identifier: Apache-2.0
"""Facts of the kernel's interfaces: system calls, BPF, seccomp, Landlock, capabilities.

Sources: <asm/unistd.h>, <linux/bpf_common.h>, <linux/seccomp.h>, <linux/landlock.h>,
<linux/capability.h>, <linux/prctl.h>.
"""

from __future__ import annotations

from typing import NamedTuple

# prctl(2).
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# capget(2), capset(2).
CAPABILITY_VERSION_3 = 0x20080522
CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_FOWNER = 3
CAP_SETGID = 6
CAP_SETUID = 7
CAP_NET_BIND_SERVICE = 10
CAP_IPC_LOCK = 14
CAP_SYS_RAWIO = 17
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24

# seccomp(2).
SECCOMP_SET_MODE_FILTER = 1
#: All threads of the process.
SECCOMP_FILTER_FLAG_TSYNC = 1
#: Without the mitigation of speculative store bypass, which kernels before 5.16 turn on.
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
#: Offsets in `struct seccomp_data`; for arguments, those of the lower halves (little endian).
DATA_NUMBER = 0
DATA_ARCH = 4
DATA_ARGUMENTS = 16

# Classic BPF.
BPF_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
BPF_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_JUMP_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
BPF_JUMP_GREATER_OR_EQUAL = 0x35  # BPF_JMP | BPF_JGE | BPF_K
BPF_JUMP_SET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
BPF_RETURN = 0x06  # BPF_RET | BPF_K

CLONE_THREAD = 0x00010000
#: Command of keyctl(2).
KEYCTL_READ = 11
#: Inserts input into a terminal.
TIOCSTI = 0x5412
#: Does the same on the console, among other things.
TIOCLINUX = 0x541C

# Landlock: rights on files, with the version of the interface that introduced them.
FS_EXECUTE = 1 << 0
FS_WRITE_FILE = 1 << 1
FS_READ_FILE = 1 << 2
FS_READ_DIR = 1 << 3
FS_REMOVE_DIR = 1 << 4
FS_REMOVE_FILE = 1 << 5
FS_MAKE_SOCK = 1 << 9
FS_VERSION_1 = (1 << 13) - 1
FS_REFER = 1 << 13  # 2
FS_TRUNCATE = 1 << 14  # 3
FS_IOCTL_DEV = 1 << 15  # 5
#: Signals to processes outside of the sandbox.
SCOPE_SIGNAL = 1 << 1  # 6
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
#: Rights for rules of files that are not directories.
FS_OF_FILES = FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV

#: The highest system call number that this table knows (Linux 6.13).
LAST_NUMBER = 466


class Architecture(NamedTuple):
    """The system call numbers of an architecture; it does not have the missing ones."""

    #: `AUDIT_ARCH_*`.
    audit: int
    numbers: dict[str, int]


#: name: x86_64, aarch64.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "shutdown": (48, 210),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "exit": (60, 93),
    "fcntl": (72, 25),
    "chdir": (80, 49),
    "unlink": (87, None),
    "readlink": (89, None),
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "capget": (125, 90),
    "capset": (126, 91),
    "sigaltstack": (131, 132),
    "mknod": (133, None),
    "uselib": (134, None),
    "personality": (135, 92),
    "ustat": (136, None),
    "sysfs": (139, None),
    "vhangup": (153, 58),
    "modify_ldt": (154, None),
    "pivot_root": (155, 41),
    "_sysctl": (156, None),
    "prctl": (157, 167),
    "adjtimex": (159, 171),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "create_module": (174, None),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "nfsservctl": (180, 42),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "lookup_dcookie": (212, 18),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "clock_settime": (227, 112),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "tgkill": (234, 131),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "migrate_pages": (256, 238),
    "openat": (257, 56),
    "mknodat": (259, 33),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "readlinkat": (267, 78),
    "ppoll": (271, 73),
    "unshare": (272, 97),
    "set_robust_list": (273, 99),
    "move_pages": (279, 239),
    "epoll_pwait": (281, 22),
    "accept4": (288, 242),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "clock_adjtime": (305, 266),
    "setns": (308, 268),
    "dup3": (292, 24),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "seccomp": (317, 277),
    "getrandom": (318, 278),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "statx": (332, 291),
    "rseq": (334, 293),
    # From here on all architectures have the same numbers.
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}


def _column(index: int) -> dict[str, int]:
    return {name: number for name, row in _NUMBERS.items() if (number := row[index]) is not None}


#: By `uname -m`.
ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, _column(0)),
    "aarch64": Architecture(0xC00000B7, _column(1)),
}
