# SPDX-License-Identifier: Apache-2.0
"""Conversion of JSON values and keyval trees to schema structs, with QEMU's messages.

The order is that of QEMU's generated visitors (`qapi/qobject-input-visitor.c`): first the tag, then
the members in the schema's order, then the unknown members. So both report the same one of several
errors. All leaves of keyval trees are strings: `on` and `off`, numbers in C's notation, sizes with
suffixes.
"""

from __future__ import annotations

import functools
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union, get_args, get_origin

from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import FieldInfo, fields

from vhostblk.schema.base import OpenUnion, QapiStruct, UnsetType
from vhostblk.schema.errors import BadValueError, OptionError
from vhostblk.schema.numbers import parse_int64, parse_size, parse_uint64

if TYPE_CHECKING:
    from collections.abc import Callable

S = TypeVar("S", bound=QapiStruct)

_TRUE = frozenset({"on", "yes", "true", "y"})
_FALSE = frozenset({"off", "no", "false", "n"})

#: Limits of integers with fewer than 64 bits; signed ones may be negative.
_RANGES = {
    "uint16_t": (0, 0xFFFF),
    "uint32_t": (0, 0xFFFF_FFFF),
    "int32_t": (-(1 << 31), (1 << 31) - 1),
}
_SIGNED = frozenset({None, "int32_t"})


def from_json(schema: Any, value: object) -> Any:
    """Convert a JSON value to a struct, or to one of a union of structs; raises OptionError."""
    return _Visitor(strings=False).visit(schema, value, "")


def from_keyval(schema: Any, tree: dict[str, object]) -> Any:
    """Convert a result of `keyval.parse()`; raises OptionError."""
    return _Visitor(strings=True).visit(schema, tree, "")


class Member(NamedTuple):
    """One member of a struct."""

    name: str
    wire_name: str
    schema: Any
    required: bool
    default: Any


@functools.cache
def members_of(struct: type[Struct]) -> tuple[Member, ...]:
    """Return a struct's members in the schema's order, without the tag."""
    return tuple(_member(info) for info in fields(struct))


def _member(info: FieldInfo) -> Member:
    schema = info.type
    if get_origin(schema) in (Union, UnionType):
        kept = tuple(branch for branch in get_args(schema) if branch is not UnsetType)
        schema = kept[0] if len(kept) == 1 else Union[kept]  # noqa: UP007 (built at run time)
    default = info.default if info.default is not NODEFAULT else None
    return Member(info.name, info.encode_name, schema, info.required, default)


def is_union(schema: Any) -> bool:
    """Return whether a type is a flat union, or a branch of one."""
    return _open_union(schema) is not None or bool(_closed_branches(schema))


def branches_of(schema: Any) -> dict[str, type[Struct]]:
    """Return the structs of a flat union, or the one tagged struct, by their tags.

    For an alternate, these are the branches other than the string.
    """
    union = _open_union(schema)
    if union is None:
        return _closed_branches(schema)
    found = ((name, union.find_branch(name)) for name in union.branch_names())
    return {name: branch for name, branch in found if branch is not None}


def tag_field_of(schema: Any) -> str:
    """Return the name of a flat union's tag."""
    struct = _open_union(schema) or next(iter(_closed_branches(schema).values()))
    field = struct.__struct_config__.tag_field
    assert field is not None
    return field


def _find_branch(schema: Any, tag: str) -> type[Struct] | None:
    union = _open_union(schema)
    return _closed_branches(schema).get(tag) if union is None else union.find_branch(tag)


@functools.cache
def _open_union(schema: Any) -> type[OpenUnion] | None:
    for struct in _alternatives(schema):
        if isinstance(struct, type) and OpenUnion in struct.__bases__:
            return struct
    return None


@functools.cache
def _closed_branches(schema: Any) -> dict[str, type[Struct]]:
    found: dict[str, type[Struct]] = {}
    for struct in _alternatives(schema):
        if isinstance(struct, type) and issubclass(struct, Struct):
            tag = struct.__struct_config__.tag
            if isinstance(tag, str):
                found[tag] = struct
    return found


def _alternatives(schema: Any) -> tuple[Any, ...]:
    return get_args(schema) if get_origin(schema) in (Union, UnionType) else (schema,)


def without_title(schema: Any) -> tuple[Any, str | None]:
    """Return a type without its annotation, and the name in the annotation."""
    if not hasattr(schema, "__metadata__"):
        return schema, None
    titles = [meta.title for meta in schema.__metadata__ if isinstance(meta, Meta)]
    return schema.__origin__, titles[0] if titles else None


class _Visitor:
    def __init__(self, *, strings: bool) -> None:
        self._strings = strings

    def visit(self, schema: Any, value: object, path: str) -> Any:
        """Convert `value`, found at `path` ('' is the root), to the type `schema`."""
        schema, title = without_title(schema)
        if schema is Any:
            return value
        if schema is str:
            return self._string(value, path)
        if schema is bool:
            return self._boolean(value, path)
        if schema is int:
            return self._integer(title, value, path)
        if isinstance(schema, type) and issubclass(schema, Enum):
            return self._enum(schema, value, path)
        if get_origin(schema) is list:
            return self._list(get_args(schema)[0], value, path)
        if value is None and NoneType in get_args(schema):
            return None
        if get_origin(schema) in (Union, UnionType) and not is_union(schema):
            return self._alternate(schema, title, value, path)
        if str in get_args(schema):
            if isinstance(value, str):
                return value
            if not isinstance(value, dict):
                raise _wrong_type(path, title)
            return self._union(schema, value, path)
        if not isinstance(value, dict):
            raise _wrong_type(path, "object")
        if is_union(schema):
            return self._union(schema, value, path)
        return self._struct(schema, value, path, tag_field=None)

    def _alternate(self, schema: Any, title: str | None, value: object, path: str) -> Any:
        """Convert according to the kind of the value: string, enumeration, or untagged struct."""
        if isinstance(value, str) and str in get_args(schema):
            return value
        kind = Enum if isinstance(value, str) else Struct if isinstance(value, dict) else None
        for choice in get_args(schema):
            if kind is not None and isinstance(choice, type) and issubclass(choice, kind):
                return self.visit(choice, value, path)
        raise _wrong_type(_last(path), title)

    def _list(self, element: Any, value: object, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong_type(path, "array")
        place = "{}.{}" if self._strings else "{}[{}]"
        return [
            self.visit(element, item, place.format(path, index)) for index, item in enumerate(value)
        ]

    def _union(self, schema: Any, value: dict[str, Any], path: str) -> Struct:
        tag_field = tag_field_of(schema)
        where = _join(path, tag_field)
        if tag_field not in value:
            raise _wrong(where, "is missing")
        tag = self._string(value[tag_field], where)
        branch = _find_branch(schema, tag)
        if branch is None:
            raise _bad_value(where, tag_field, tag)
        return self._struct(branch, value, path, tag_field)

    def _struct(
        self, struct: type[Struct], value: dict[str, Any], path: str, tag_field: str | None
    ) -> Struct:
        members = members_of(struct)
        arguments: dict[str, Any] = {}
        for member in members:
            where = _join(path, member.wire_name)
            if member.wire_name in value:
                arguments[member.name] = self.visit(member.schema, value[member.wire_name], where)
            elif member.required:
                raise _wrong(where, "is missing")
        known = {member.wire_name for member in members} | {tag_field}
        for name in value:
            if name not in known:
                raise _wrong(_join(path, name), "is unexpected")
        return struct(**arguments)

    def _string(self, value: object, path: str) -> str:
        if not isinstance(value, str):
            raise self._not_scalar(value, path) or _wrong_type(path, "string")
        return value

    def _enum(self, enum: type[Enum], value: object, path: str) -> Enum:
        text = self._string(value, path)
        try:
            return enum(text)
        except ValueError:
            raise _bad_value(path, _last(path), text) from None

    def _boolean(self, value: object, path: str) -> bool:
        if not self._strings:
            if not isinstance(value, bool):
                raise _wrong_type(path, "boolean")
            return value
        text = self._string(value, path)
        if text not in _TRUE and text not in _FALSE:
            raise _wrong(path, "expects 'on' or 'off'")
        return text in _TRUE

    def _integer(self, kind: str | None, value: object, path: str) -> int:
        number = (
            _integer_from_string(kind, self._string(value, path), path)
            if self._strings
            else _integer_from_json(kind, value, path)
        )
        low, high = _RANGES.get(kind or "", (number, number))
        if not low <= number <= high:
            raise OptionError(f"Parameter '{_last(path)}' expects {kind}", option=path)
        return number

    def _not_scalar(self, value: object, path: str) -> OptionError | None:
        if self._strings:
            return OptionError(f"Parameters '{path}.*' are unexpected", option=path)
        return None


def _integer_from_string(kind: str | None, text: str, path: str) -> int:
    parse: Callable[[str], int | None] = parse_int64 if kind in _SIGNED else parse_uint64
    if kind == "size":
        parse = parse_size
    number = parse(text)
    if number is None:
        raise _wrong(path, f"expects {'size' if kind == 'size' else 'integer'}")
    return number


def _integer_from_json(kind: str | None, value: object, path: str) -> int:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if kind in _SIGNED:
        if not is_integer or not -(2**63) <= value < 2**63:  # type: ignore[operator]
            raise _wrong_type(path, "integer")
    elif not is_integer or not -(2**63) <= value < 2**64:  # type: ignore[operator]
        raise _wrong(path, "expects uint64")
    assert isinstance(value, int)
    return value if kind in _SIGNED else value % 2**64


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _last(path: str) -> str:
    # QEMU's generated code knows only the member's own name, without its path.
    name = path.rpartition(".")[2]
    return "null" if name.endswith("]") or name.isdecimal() else name  # items have no name


def _wrong(path: str, what: str) -> OptionError:
    return OptionError(f"Parameter '{path}' {what}", option=path)


def _bad_value(path: str, name: str, value: str) -> OptionError:
    return BadValueError(f"Parameter '{name}' does not accept value '{value}'", option=path)


def _wrong_type(path: str, expected: str | None) -> OptionError:
    return OptionError(f"Invalid parameter type for '{path}', expected: {expected}", option=path)
