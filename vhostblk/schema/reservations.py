# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations: managers (`qapi/block.json`), and commands of our own."""

from __future__ import annotations

from enum import Enum

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.common import Uint16, Uint32, Uint64  # noqa: TC001 (read at run time)


class PrManagerInfo(QapiStruct, kw_only=True, frozen=True):
    """One manager in the result of `query-pr-managers`."""

    id: str
    connected: bool


class PrManagerStatusChanged(QapiStruct, kw_only=True, frozen=True):
    """Data of the event `PR_MANAGER_STATUS_CHANGED`."""

    id: str
    connected: bool


class PrType(Enum):
    """Types of reservations (SPC-4, 5.13)."""

    WRITE_EXCLUSIVE = "write-exclusive"
    EXCLUSIVE_ACCESS = "exclusive-access"
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = "write-exclusive-registrants-only"
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = "exclusive-access-registrants-only"
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = "write-exclusive-all-registrants"
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = "exclusive-access-all-registrants"


class PrInAction(Enum):
    """Service actions of PERSISTENT RESERVE IN."""

    READ_KEYS = "read-keys"
    READ_RESERVATION = "read-reservation"
    REPORT_CAPABILITIES = "report-capabilities"
    READ_FULL_STATUS = "read-full-status"


class PrOutAction(Enum):
    """Service actions of PERSISTENT RESERVE OUT."""

    REGISTER = "register"
    RESERVE = "reserve"
    RELEASE = "release"
    CLEAR = "clear"
    PREEMPT = "preempt"
    PREEMPT_AND_ABORT = "preempt-and-abort"
    REGISTER_AND_IGNORE_EXISTING_KEY = "register-and-ignore-existing-key"


class PrIn(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-vhostblk-pr-in`."""

    node_name: str
    service_action: PrInAction


class PrOut(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `x-vhostblk-pr-out`."""

    node_name: str
    service_action: PrOutAction
    #: The reservation key of our own registration.
    key: Uint64 = 0
    #: The key to register, or that of the registrations to be preempted.
    service_action_key: Uint64 = 0
    #: Needed to reserve, release and preempt.
    type: PrType | UnsetType = UNSET
    #: Whether registrations survive a loss of power.
    aptpl: bool = False
    #: Whether to register on all ports of the target.
    all_target_ports: bool = False


class PrReservation(QapiStruct, kw_only=True, frozen=True):
    """The reservation of a device."""

    key: Uint64
    type: PrType


class PrCapabilities(QapiStruct, kw_only=True, frozen=True):
    """Capabilities of a device."""

    aptpl: bool
    aptpl_active: bool
    all_target_ports: bool
    specify_initiator_ports: bool
    #: Absent if the device does not report its types.
    types: list[PrType] | UnsetType = UNSET


class PrRegistration(QapiStruct, kw_only=True, frozen=True):
    """One registration in the result of READ FULL STATUS."""

    key: Uint64
    #: The type of the reservation, if this registration holds it.
    type: PrType | UnsetType = UNSET
    all_target_ports: bool
    relative_target_port: Uint16
    #: The initiator's transport ID in hexadecimal (SPC-4, 7.6.4).
    transport_id: str


class PrStatus(QapiStruct, kw_only=True, frozen=True):
    """Result of `x-vhostblk-pr-in`; only the requested members are set."""

    generation: Uint32 | UnsetType = UNSET
    keys: list[Uint64] | UnsetType = UNSET
    #: Absent if the device is not reserved.
    reservation: PrReservation | UnsetType = UNSET
    capabilities: PrCapabilities | UnsetType = UNSET
    registrations: list[PrRegistration] | UnsetType = UNSET
