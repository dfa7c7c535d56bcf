# SPDX-License-Identifier: Apache-2.0
"""The result of `query-qmp-schema`, derived from commands, events and their structs.

Some types of QAPI have no struct, and are created here. A flat union's tag has an enumeration of
the tags. The members common to the branches are those of their nearest common base class, and a
branch has a type for its other members. A struct in both arguments and results is described twice,
because its optional members differ.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Union, get_args, get_origin

from msgspec import Struct

from vhostblk.schema.base import UNSET, QapiStruct
from vhostblk.schema.convert import (
    Member,
    branches_of,
    is_union,
    members_of,
    tag_field_of,
    without_title,
)
from vhostblk.schema.introspect import (
    JSONType,
    SchemaInfo,
    SchemaInfoAlternate,
    SchemaInfoAlternateMember,
    SchemaInfoArray,
    SchemaInfoBuiltin,
    SchemaInfoCommand,
    SchemaInfoEnum,
    SchemaInfoEnumMember,
    SchemaInfoEvent,
    SchemaInfoObject,
    SchemaInfoObjectMember,
    SchemaInfoObjectVariant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_BUILTINS: dict[Any, tuple[str, JSONType]] = {
    str: ("str", JSONType.STRING),
    bool: ("bool", JSONType.BOOLEAN),
    int: ("int", JSONType.INT),
    float: ("number", JSONType.NUMBER),
    None: ("null", JSONType.NULL),
    NoneType: ("null", JSONType.NULL),
    Any: ("any", JSONType.VALUE),
}


class _Command(Protocol):
    """The interface of a command that this module needs."""

    @property
    def name(self) -> str: ...
    @property
    def allow_oob(self) -> bool: ...
    @property
    def features(self) -> tuple[str, ...]: ...
    def types(self) -> tuple[Any, Any]: ...


class _Tags(NamedTuple):
    """The enumeration of a flat union's tags."""

    union: Any


class _Rest(NamedTuple):
    """The members of a flat union's branch besides the common ones; none without a branch."""

    branch: type[Struct] | None
    common: frozenset[str]

    @property
    def members(self) -> tuple[Member, ...]:
        members = () if self.branch is None else members_of(self.branch)
        return tuple(member for member in members if member.wire_name not in self.common)


_EMPTY = _Rest(None, frozenset())


def describe(commands: Iterable[_Command], events: Mapping[str, Any]) -> list[SchemaInfo]:
    """Describe commands, events (by name, with the struct of their data) and their types."""
    describer = _Describer()
    entities: list[SchemaInfo] = [
        describer.command(command) for command in sorted(commands, key=lambda each: each.name)
    ]
    for name, data in sorted(events.items()):
        entities.append(
            SchemaInfoEvent(name=name, arg_type=describer.object_name(data, answered=True))
        )
    return entities + list(describer.types())


class _Describer:
    def __init__(self) -> None:
        #: Names of types, in arguments and in results.
        self._names: dict[tuple[Any, bool], str] = {}
        self._numbers = 0
        #: Types that are still to be described, in arguments or results; all types so far.
        self._to_do: deque[tuple[Any, bool]] = deque()
        self._seen: set[str] = set()

    def command(self, command: _Command) -> SchemaInfoCommand:
        arguments, answer = command.types()
        return SchemaInfoCommand(
            name=command.name,
            arg_type=self.object_name(arguments, answered=False),
            ret_type=self.object_name(answer, answered=True),
            allow_oob=True if command.allow_oob else UNSET,
            features=list(command.features) or UNSET,
        )

    def object_name(self, schema: Any, *, answered: bool) -> str:
        """Return the name of a type; None is the object without members."""
        return self._name(_EMPTY if schema is None else schema, answered)

    def types(self) -> Iterable[SchemaInfo]:
        """Describe all types named so far, and the types that these name."""
        while self._to_do:
            schema, answered = self._to_do.popleft()
            yield self._describe(schema, self._names[schema, answered], answered)

    def _name(self, schema: Any, answered: bool) -> str:
        schema = without_title(schema)[0]
        if get_origin(schema) is dict or schema is object:
            schema = Any
        # A type without members is the same in both.
        answered = answered and not (
            schema is _EMPTY
            or isinstance(schema, _Tags)
            or (isinstance(schema, type) and issubclass(schema, Enum))
        )
        if (schema, answered) not in self._names:
            name = self._names[schema, answered] = self._new_name(schema, answered)
            if name not in self._seen:
                self._seen.add(name)
                self._to_do.append((schema, answered))
        return self._names[schema, answered]

    def _new_name(self, schema: Any, answered: bool) -> str:
        if schema in _BUILTINS:
            return _BUILTINS[schema][0]
        if get_origin(schema) is list:
            return f"[{self._name(get_args(schema)[0], answered)}]"
        self._numbers += 1
        return str(self._numbers - 1)

    def _describe(self, schema: Any, name: str, answered: bool) -> SchemaInfo:
        if schema in _BUILTINS:
            return SchemaInfoBuiltin(name=name, json_type=_BUILTINS[schema][1])
        if get_origin(schema) is list:
            return SchemaInfoArray(
                name=name, element_type=self._name(get_args(schema)[0], answered)
            )
        if isinstance(schema, _Tags):
            return _enum(name, list(branches_of(schema.union)))
        if isinstance(schema, _Rest):
            return SchemaInfoObject(name=name, members=self._members(schema.members, answered))
        if isinstance(schema, type) and issubclass(schema, Enum):
            return _enum(name, [str(choice.value) for choice in schema])
        if get_origin(schema) in (Union, UnionType) and not all(map(_is_struct, get_args(schema))):
            return self._alternate(schema, name, answered)
        if is_union(schema):
            return self._union(schema, name, answered)
        return SchemaInfoObject(name=name, members=self._members(members_of(schema), answered))

    def _members(self, members: Iterable[Member], answered: bool) -> list[SchemaInfoObjectMember]:
        return [
            SchemaInfoObjectMember(
                name=member.wire_name,
                type=self._name(member.schema, answered),
                default=None if _may_be_absent(member, answered) else UNSET,
            )
            for member in members
        ]

    def _alternate(self, schema: Any, name: str, answered: bool) -> SchemaInfoAlternate:
        choices = get_args(schema)
        structs = tuple(choice for choice in choices if _is_struct(choice))
        kinds = [choice for choice in choices if not _is_struct(choice)]
        if structs:
            kinds.insert(0, Union[structs])  # noqa: UP007 (built at run time)
        members = [SchemaInfoAlternateMember(type=self._name(kind, answered)) for kind in kinds]
        return SchemaInfoAlternate(name=name, members=members)

    def _union(self, schema: Any, name: str, answered: bool) -> SchemaInfoObject:
        branches = branches_of(schema)
        tag = tag_field_of(schema)
        common = _common_members(list(branches.values()))
        names = frozenset(member.wire_name for member in common)
        variants = []
        for case, branch in branches.items():
            rest = _Rest(branch, names)
            rest_name = self._name(rest if rest.members else _EMPTY, answered)
            variants.append(SchemaInfoObjectVariant(case=case, type=rest_name))
        tag_member = SchemaInfoObjectMember(name=tag, type=self._name(_Tags(schema), answered))
        return SchemaInfoObject(
            name=name,
            members=[tag_member, *self._members(common, answered)],
            tag=tag,
            variants=variants,
        )


def _may_be_absent(member: Member, answered: bool) -> bool:
    """Return whether a member is optional; in results, a member with a default is present."""
    return member.default is UNSET if answered else not member.required


def _is_struct(schema: Any) -> bool:
    return isinstance(schema, type) and issubclass(schema, Struct)


def _enum(name: str, values: list[str]) -> SchemaInfoEnum:
    members = [SchemaInfoEnumMember(name=value) for value in values]
    return SchemaInfoEnum(name=name, members=members, values=values)


def _common_members(branches: list[type[Struct]]) -> tuple[Member, ...]:
    for base in branches[0].__mro__:
        if base is QapiStruct:
            break
        if base not in branches and all(issubclass(branch, base) for branch in branches):
            return members_of(base)
    return ()
