# SPDX-License-Identifier: Apache-2.0
"""Limits of throttle groups (`qapi/block-core.json`, `qapi/qom.json`), and their rules.

Members that are not given keep their values. So limits are checked as a whole: a `ThrottleLimits`
in which every member is set. The rules and messages are those of QEMU's `util/throttle.c`. As in
QEMU, negative numbers count as numbers close to 2**64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import asdict, replace

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType
from vhostblk.schema.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: The highest rate.
VALUE_MAX = 10**15

#: The limited rates, in the order in which they are checked.
RATES = tuple(f"{unit}_{of}" for unit in ("bps", "iops") for of in ("total", "read", "write"))

_UINT_MAX = 2**32 - 1


class ThrottleLimits(QapiStruct, kw_only=True, frozen=True):
    """Rates a second; 0: no limit. Bursts may have a higher rate, for `_max_length` seconds."""

    iops_total: int | UnsetType = UNSET
    iops_total_max: int | UnsetType = UNSET
    iops_total_max_length: int | UnsetType = UNSET
    iops_read: int | UnsetType = UNSET
    iops_read_max: int | UnsetType = UNSET
    iops_read_max_length: int | UnsetType = UNSET
    iops_write: int | UnsetType = UNSET
    iops_write_max: int | UnsetType = UNSET
    iops_write_max_length: int | UnsetType = UNSET
    bps_total: int | UnsetType = UNSET
    bps_total_max: int | UnsetType = UNSET
    bps_total_max_length: int | UnsetType = UNSET
    bps_read: int | UnsetType = UNSET
    bps_read_max: int | UnsetType = UNSET
    bps_read_max_length: int | UnsetType = UNSET
    bps_write: int | UnsetType = UNSET
    bps_write_max: int | UnsetType = UNSET
    bps_write_max_length: int | UnsetType = UNSET
    iops_size: int | UnsetType = UNSET


class Rate(NamedTuple):
    """The limit of one rate: `avg` a second, and up to `max`, if set, for `length` seconds."""

    avg: int
    max: int
    length: int


#: No limits at all.
UNLIMITED = replace(
    ThrottleLimits(iops_size=0),
    **dict.fromkeys(RATES, 0),
    **{f"{rate}_max": 0 for rate in RATES},
    **{f"{rate}_max_length": 1 for rate in RATES},
)


def rates_of(limits: ThrottleLimits) -> list[Rate]:
    """Return the six rates of complete limits, in the order of `RATES`."""
    values = asdict(limits)
    return [
        Rate(*(_unsigned(values[rate + suffix]) for suffix in ("", "_max", "_max_length")))
        for rate in RATES
    ]


def unit_of(limits: ThrottleLimits) -> int:
    """Return the number of bytes that count as one operation; 0: any number."""
    assert limits.iops_size is not UNSET
    return _unsigned(limits.iops_size)


def limits_of(single: Mapping[str, int], change: ThrottleLimits | UnsetType) -> ThrottleLimits:
    """Return complete limits: the single members by name, and then the changes.

    Raises OptionError.
    """
    for name, value in single.items():
        if value < 0:
            raise OptionError("Property values cannot be negative")
        if name.endswith("_length") and value > _UINT_MAX:
            # QEMU's message also lacks the space.
            raise OptionError(f"x-{_wire(name)} value must be in therange [0, {_UINT_MAX}]")
    limits = replace(UNLIMITED, **single)
    if change is not UNSET:
        return changed_limits(limits, change)
    _check(limits)
    return limits


def changed_limits(limits: ThrottleLimits, change: ThrottleLimits) -> ThrottleLimits:
    """Return complete limits with some of them changed; raises OptionError."""
    given = _given(change)
    for rate in RATES:
        name = f"{rate}_max_length"
        if given.get(name, 0) > _UINT_MAX:
            raise OptionError(f"{_wire(name)} value must be in the range [0, {_UINT_MAX}]")
    changed = replace(limits, **given)
    _check(changed)
    return changed


def _given(options: QapiStruct) -> dict[str, int]:
    return {name: value for name, value in asdict(options).items() if value is not UNSET}


def _wire(name: str) -> str:
    return name.replace("_", "-")


def _unsigned(value: int) -> int:
    return value % 2**64


def _check(limits: ThrottleLimits) -> None:
    """Raise OptionError for inconsistent limits."""
    rates = dict(zip(RATES, rates_of(limits), strict=True))
    if any(_conflicts(rates)):
        raise OptionError(
            "bps/iops/max total values and read/write values cannot be used at the same time"
        )
    if limits.iops_size and not any(rates[rate].avg for rate in RATES if rate[0] == "i"):
        raise OptionError("iops size requires an iops value to be set")
    for rate in rates.values():
        _check_rate(rate)


def _conflicts(rates: Mapping[str, Rate]) -> Iterator[bool]:
    for unit in ("bps", "iops"):
        total, read, write = (rates[f"{unit}_{of}"] for of in ("total", "read", "write"))
        yield bool(total.avg and (read.avg or write.avg))
        yield bool(total.max and (read.max or write.max))


def _check_rate(rate: Rate) -> None:
    if rate.avg > VALUE_MAX or rate.max > VALUE_MAX:
        raise OptionError(f"bps/iops/max values must be within [0, {VALUE_MAX}]")
    if not rate.length:
        raise OptionError("the burst length cannot be 0")
    if rate.length > 1 and not rate.max:
        raise OptionError("burst length set without burst rate")
    if rate.max and rate.length > VALUE_MAX // rate.max:
        raise OptionError("burst length too high for this burst rate")
    if rate.max and not rate.avg:
        raise OptionError("bps_max/iops_max require corresponding bps/iops values")
    if rate.max and rate.max < rate.avg:
        raise OptionError("bps_max/iops_max cannot be lower than bps/iops")
