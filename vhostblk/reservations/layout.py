# SPDX-License-Identifier: Apache-2.0
"""Constants and structures: the helper's protocol, SCSI, SG_IO.

Sources: QEMU's docs/interop/pr-helper.rst, SPC-4 (T10), <scsi/sg.h>, <linux/major.h>.
"""

from __future__ import annotations

import struct

# The helper's protocol; everything is big endian.
FEATURES_SIZE = 4
#: No feature is defined.
FEATURES = 0
CDB_SIZE = 16
SENSE_SIZE = 96
#: Longest parameter list, and longest data of a reply.
MAX_DATA = 8192
#: Status, length of the data, sense data.
REPLY = struct.Struct(f">iI{SENSE_SIZE}s")
#: Where a CDB says how long its parameter list is, or how much data is wanted.
LENGTH = struct.Struct(">H")
LENGTH_OFFSET = 7

# Operation codes.
TEST_UNIT_READY = 0x00
PERSISTENT_RESERVE_IN = 0x5E
PERSISTENT_RESERVE_OUT = 0x5F
#: The low bits of a CDB's byte 1.
SERVICE_ACTION_MASK = 0x1F

# Service actions of PERSISTENT RESERVE IN.
READ_KEYS = 0
READ_RESERVATION = 1
REPORT_CAPABILITIES = 2
READ_FULL_STATUS = 3

# Service actions of PERSISTENT RESERVE OUT.
REGISTER = 0
RESERVE = 1
RELEASE = 2
CLEAR = 3
PREEMPT = 4
PREEMPT_AND_ABORT = 5
REGISTER_AND_IGNORE = 6
REGISTER_AND_MOVE = 7

# The basic parameter list of PERSISTENT RESERVE OUT: key, service action key, obsolete, flags,
# reserved, obsolete. With SPEC_I_PT a length and transport IDs follow.
PARAMETERS = struct.Struct(">8s8s4sBxH")
PARAMETERS_SIZE = 24
APTPL = 0x01
ALL_TG_PT = 0x04
SPEC_I_PT = 0x08

# Statuses.
GOOD = 0x00
CHECK_CONDITION = 0x02
BUSY = 0x08
RESERVATION_CONFLICT = 0x18
TASK_SET_FULL = 0x28
STATUS_NAMES = {BUSY: "busy", TASK_SET_FULL: "task set full"}

# SG_IO.
SG_IO = 0x2285
SG_DXFER_NONE = -1
SG_DXFER_TO_DEV = -2
SG_DXFER_FROM_DEV = -3
#: `struct sg_io_hdr`: interface_id, dxfer_direction, cmd_len, mx_sb_len, iovec_count, dxfer_len,
#: dxferp, cmdp, sbp, timeout, flags, pack_id, usr_ptr, status, masked_status, msg_status,
#: sb_len_wr, host_status, driver_status, resid, duration, info, and padding.
SG_IO_HDR = struct.Struct("@iiBBHIPPPIIiPBBBBHHiII0P")
#: Set in `driver_status` by kernels before 5.14 when a command timed out.
DRIVER_TIMEOUT = 0x06
#: Character devices of the sg driver.
SCSI_GENERIC_MAJOR = 21
#: Major numbers of SCSI disks, which can't be anything else.
SCSI_DISK_MAJORS = frozenset({8, *range(65, 72), *range(128, 136)})
