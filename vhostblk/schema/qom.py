# SPDX-License-Identifier: Apache-2.0
"""The object tree's commands and answers (`qapi/qom.json`)."""

from __future__ import annotations

from typing import Any

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class ObjectPropertyInfo(QapiStruct, kw_only=True, frozen=True):
    """One property of an object or of a type."""

    name: str
    #: A QAPI type, or `child<type>` for the object that has this name below.
    type: str
    description: str | UnsetType = UNSET
    default_value: Any = UNSET


class ObjectTypeInfo(QapiStruct, kw_only=True, frozen=True):
    """One type."""

    name: str
    abstract: bool | UnsetType = UNSET
    parent: str | UnsetType = UNSET


class QomList(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `qom-list`."""

    path: str


class QomGet(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `qom-get`."""

    path: str
    property: str


class QomSet(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `qom-set`."""

    path: str
    property: str
    value: Any


class QomListTypes(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `qom-list-types`."""

    implements: str | UnsetType = UNSET
    abstract: bool = False


class QomListProperties(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `qom-list-properties`."""

    typename: str


class ObjectDel(QapiStruct, kw_only=True, frozen=True):
    """Arguments of `object-del`."""

    id: str
