# SPDX-License-Identifier: Apache-2.0
"""What an answer of `query-qmp-schema` says, independent of the numbers of types."""

from __future__ import annotations

from typing import Any

Info = dict[str, Any]


class Introspection:
    """An answer; making one checks that every reference leads to the kind of type it must."""

    def __init__(self, answer: list[Info]) -> None:
        self.entities = {
            (info["meta-type"] in ("command", "event"), info["name"]): info for info in answer
        }
        assert len(self.entities) == len(answer)
        for info in answer:
            getattr(self, f"_check_{info['meta-type']}")(info)

    def commands(self) -> dict[str, Info]:
        return {name: info for (_, name), info in self.entities.items() if "ret-type" in info}

    def type(self, name: str) -> Info:
        return self.entities[False, name]

    def members(self, type_name: str, prefix: str = "", depth: int = 3) -> dict[str, str]:
        """Return the members of an object by their paths, with what is known of each."""
        info = self.type(type_name)
        found: dict[str, str] = {}
        if depth == 0 or info["meta-type"] != "object":
            return found
        for member in info["members"]:
            path = prefix + member["name"]
            optional = "?" if "default" in member else ""
            found[path] = optional + self._shape(member["type"])
            found.update(self.members(member["type"], f"{path}.", depth - 1))
        for variant in info.get("variants", []):
            case = f"{prefix}<{variant['case']}>"
            found.update(self.members(variant["type"], case, depth))
        return found

    def _shape(self, type_name: str) -> str:
        info = self.type(type_name)
        kind: str = info["meta-type"]
        if kind == "builtin":
            return str(info["json-type"])
        if kind == "array":
            return f"[{self._shape(info['element-type'])}]"
        return kind

    def _object(self, name: str) -> Info:
        info = self.type(name)
        assert info["meta-type"] == "object", info
        return info

    def _check_command(self, info: Info) -> None:
        self._object(info["arg-type"])
        assert self.type(info["ret-type"])

    def _check_event(self, info: Info) -> None:
        self._object(info["arg-type"])

    def _check_builtin(self, info: Info) -> None:
        assert info["json-type"] in ("string", "number", "int", "boolean", "null", "value")

    def _check_enum(self, info: Info) -> None:
        assert [member["name"] for member in info["members"]] == info["values"]

    def _check_array(self, info: Info) -> None:
        assert self.type(info["element-type"])
        assert info["name"] == f"[{info['element-type']}]"

    def _check_alternate(self, info: Info) -> None:
        kinds = [self._shape(member["type"]) for member in info["members"]]
        assert len(set(kinds)) == len(kinds) > 1

    def _check_object(self, info: Info) -> None:
        names = [member["name"] for member in info["members"]]
        assert len(set(names)) == len(names)
        for member in info["members"]:
            assert self.type(member["type"])
            assert member.get("default") is None
        if "tag" in info:
            (tag,) = (member for member in info["members"] if member["name"] == info["tag"])
            cases = {variant["case"] for variant in info["variants"]}
            assert cases == set(self.type(tag["type"])["values"])
            for variant in info["variants"]:
                assert not set(names) & {
                    member["name"] for member in self._object(variant["type"])["members"]
                }
