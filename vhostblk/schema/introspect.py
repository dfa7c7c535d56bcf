# SPDX-License-Identifier: Apache-2.0
"""The result of `query-qmp-schema` (`qapi/introspect.json`)."""

from __future__ import annotations

from enum import Enum
from typing import Any

from vhostblk.schema.base import UNSET, QapiStruct, UnsetType


class JSONType(Enum):
    """The types of JSON, with integers as a separate type."""

    STRING = "string"
    NUMBER = "number"
    INT = "int"
    BOOLEAN = "boolean"
    NULL = "null"
    OBJECT = "object"
    ARRAY = "array"
    VALUE = "value"


class SchemaInfoBase(QapiStruct, tag_field="meta-type", kw_only=True, frozen=True):
    """Members common to all descriptions. The names of types that are not built in are numbers."""

    name: str
    features: list[str] | UnsetType = UNSET


class SchemaInfoBuiltin(SchemaInfoBase, tag="builtin", kw_only=True, frozen=True):
    """A built-in type."""

    json_type: JSONType


class SchemaInfoEnumMember(QapiStruct, kw_only=True, frozen=True):
    """One value of an enumeration."""

    name: str
    features: list[str] | UnsetType = UNSET


class SchemaInfoEnum(SchemaInfoBase, tag="enum", kw_only=True, frozen=True):
    """An enumeration; `values` repeats the members' names for old clients."""

    members: list[SchemaInfoEnumMember]
    values: list[str]


class SchemaInfoArray(SchemaInfoBase, tag="array", kw_only=True, frozen=True):
    """An array."""

    element_type: str


class SchemaInfoObjectMember(QapiStruct, kw_only=True, frozen=True):
    """A member of an object; it is optional if it has a `default`, which is always null."""

    name: str
    type: str
    default: Any = UNSET
    features: list[str] | UnsetType = UNSET


class SchemaInfoObjectVariant(QapiStruct, kw_only=True, frozen=True):
    """The additional members of an object if the tag has the value `case`."""

    case: str
    type: str


class SchemaInfoObject(SchemaInfoBase, tag="object", kw_only=True, frozen=True):
    """An object."""

    members: list[SchemaInfoObjectMember]
    tag: str | UnsetType = UNSET
    variants: list[SchemaInfoObjectVariant] | UnsetType = UNSET


class SchemaInfoAlternateMember(QapiStruct, kw_only=True, frozen=True):
    """One type of an alternate."""

    type: str


class SchemaInfoAlternate(SchemaInfoBase, tag="alternate", kw_only=True, frozen=True):
    """One of several types, which JSON's types distinguish."""

    members: list[SchemaInfoAlternateMember]


class SchemaInfoCommand(SchemaInfoBase, tag="command", kw_only=True, frozen=True):
    """A command."""

    arg_type: str
    ret_type: str
    allow_oob: bool | UnsetType = UNSET


class SchemaInfoEvent(SchemaInfoBase, tag="event", kw_only=True, frozen=True):
    """An event."""

    arg_type: str


SchemaInfo = (
    SchemaInfoBuiltin
    | SchemaInfoEnum
    | SchemaInfoArray
    | SchemaInfoObject
    | SchemaInfoAlternate
    | SchemaInfoCommand
    | SchemaInfoEvent
)
