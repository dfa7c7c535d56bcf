# SPDX-License-Identifier: Apache-2.0
"""What `--help`, `--version` and `help` inside an option print."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, get_args

from vhostblk.schema.block import BlockdevOptions
from vhostblk.schema.convert import branches_of, members_of, tag_field_of, without_title
from vhostblk.schema.export import BlockExportOptions
from vhostblk.schema.objects import ObjectOptions
from vhostblk.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = f"vhostblk version {__version__}"

USAGE = """\
Usage: vhostblk [options]
       vhostblk IMAGE --addr.type=unix,addr.path=<socket-path>[,writable=on|off][,...]
       vhostblk IMAGE --addr.type=fd,addr.str=<fd>[,writable=on|off][,...]
Export disk images to virtual machines.

  -h, --help             display this help and exit
  -V, --version          output version information and exit

  --blockdev [driver=]<driver>,node-name=<name>[,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,<driver specific options>...]
                         open a block node
  --blockdev help        list the drivers
  --blockdev <driver>,help
                         list a driver's options

  --export [type=]vhost-user-blk,id=<id>,node-name=<name>,
           addr.type=unix,addr.path=<socket-path> | addr.type=fd,addr.str=<fd>
           [,writable=on|off][,writethrough=on|off]
           [,logical-block-size=<size>][,num-queues=<n>][,iothread=<id>]
           [,x-vhostblk-serial=<text>][,x-vhostblk-queue-size=<n>]
           [,x-vhostblk-share-rw=on|off]
                         export a block node as a vhost-user-blk device
  --export help          list the export types

  --object <type>,id=<id>[,<property>=<value>...]
                         create an object, such as an iothread
  --object help          list the object types
  --object <type>,help   list a type's properties

  --daemonize            go to the background once start-up is complete
  --pidfile <path>       write the process ID to a file after start-up

  --addr.type=...        short form: export one image (opened raw, read-only
                         unless writable=on), or the one --blockdev that was
                         given; export properties follow

Options take effect in the order given. Arguments of --blockdev, --export and
--object may also be JSON objects. See vhostblk(1).
"""

_SUBJECTS = {
    "blockdev": (BlockdevOptions, "Supported drivers", "driver"),
    "export": (BlockExportOptions, "Export types", "type"),
    "addr": (BlockExportOptions, "Export types", "type"),
    "object": (ObjectOptions, "List of user creatable objects", "qom-type"),
}


def option_help(option: str, options: Mapping[str, object]) -> str:
    """Answer a request for help inside an option's argument."""
    schema, title, tag_field = _SUBJECTS[option]
    branches = branches_of(schema)
    tag = options.get(tag_field)
    if tag is None:
        return "\n".join([f"{title}:", *(f"  {name}" for name in sorted(branches))])
    if tag not in branches:
        return f"Parameter '{tag_field}' does not accept value '{tag}'"
    return "\n".join([f"{tag} options:", *(f"  {line}" for line in _members(branches[str(tag)]))])


def _members(struct: Any, prefix: str = "") -> Iterator[str]:
    for member in members_of(struct):
        name = prefix + member.wire_name
        schema = without_title(member.schema)[0]
        if (
            isinstance(schema, type)
            and branches_of(schema) == {}
            and hasattr(schema, "__struct_config__")
        ):
            yield from _members(schema, f"{name}.")
        elif branches_of(schema) and str not in get_args(schema):
            tag_field = tag_field_of(schema)
            for tag, branch in branches_of(schema).items():
                yield f"{name}.{tag_field}={tag}"
                yield from (f"  {line}" for line in _members(branch, f"{name}."))
        else:
            yield f"{name}=<{_kind(member.schema)}>{_note(member)}"


def _kind(schema: Any) -> str:
    schema, title = without_title(schema)
    if title is not None:
        return "int" if title.startswith("uint") else title
    if isinstance(schema, type) and issubclass(schema, Enum):
        return "|".join(str(choice.value) for choice in schema)
    return {str: "str", bool: "bool", int: "int"}.get(schema, "object")


def _note(member: Any) -> str:
    if member.required:
        return " (required)"
    default = member.default
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    if isinstance(default, Enum):
        return f" (default: {default.value})"
    return f" (default: {default})" if isinstance(default, int | str) else ""
