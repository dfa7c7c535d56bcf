# SPDX-License-Identifier: Apache-2.0
"""The output of `--help`, `--version` and `help` inside an option."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, get_args, get_origin

from vhostblk.schema.blockdev import CACHE_DEFAULTS, NODE_DEFAULTS, BlockdevOptions
from vhostblk.schema.convert import branches_of, is_union, members_of, tag_field_of, without_title
from vhostblk.schema.export import BlockExportOptions
from vhostblk.schema.object import ObjectOptions
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
           [,x-vhostblk-iothreads.0=<id>[,x-vhostblk-iothreads.1=<id>...]]
           [,x-vhostblk-socket-mode=<octal>][,x-vhostblk-socket-group=<group>]
           [,x-vhostblk-share-rw=on|off][,allow-inactive=on|off]
                         export a block node as a vhost-user-blk device
  --export help          list the export types
  --export vhost-user-blk,help
                         list all options of an export

  --chardev <backend>,id=<id>[,<option>...]
                         create a character device: file, null, pipe, pty,
                         ringbuf, serial, socket, stdio or udp
  --chardev help         list the backends

  --monitor [chardev=]<id>[,mode=control][,pretty[=on|off]]
                         serve QMP on a character device

  --object <type>,id=<id>[,<property>=<value>...]
                         create an object, such as an iothread
  --object help          list the object types
  --object <type>,help   list a type's properties

  --daemonize            go to the background once start-up is complete
  --pidfile <path>       write the process ID to a file after start-up

  --sandbox on|off[,spawn=allow|deny][,files=auto|allow|deny]
            [,directory=<path> | ,directory.0=<path>[,directory.1=<path>...]]
                         what the process may still do once it runs (default:
                         on); directory= are those where QMP may open files
  --run-as <user>[:<group>]
                         become this user once everything is open
  --handover <path>      let a new process take over by way of this socket
  --takeover <path>      take over from the daemon with that socket, if any

  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                         turn trace points on, or off after '-'
  -T help                list the trace points
  --x-vhostblk-log text|json
                         the form of the log: lines, or a JSON object a line

  --addr.type=...        short form: export one image (raw, or format=qcow2;
                         read-only unless writable=on, and then with
                         discard=unmap), or the one --blockdev that was given;
                         export properties follow

SIGINT, SIGTERM and SIGHUP end the program in order. SIGUSR1 has it print
statistics, one line an export.

Options take effect in the order given. Arguments of --blockdev, --export and
--object may also be JSON objects. See vhostblk(1).
"""

_SUBJECTS = {
    "blockdev": (BlockdevOptions, "Supported drivers", "driver"),
    "export": (BlockExportOptions, "Export types", "type"),
    "addr": (BlockExportOptions, "Export types", "type"),
    "object": (ObjectOptions, "List of user creatable objects", "qom-type"),
}


#: Values of options that neither the node nor the parent of an inline node sets.
_INHERITED: dict[str, object] = {
    name.replace("_", "-"): default
    for name, default in (
        *NODE_DEFAULTS.items(),
        *((f"cache.{name}", default) for name, default in CACHE_DEFAULTS.items()),
    )
}


def has_help(option: str) -> bool:
    """Return whether an option supports `help` inside its argument."""
    return option in _SUBJECTS or option == "chardev"


def option_help(option: str, options: Mapping[str, object]) -> str:
    """Return the text for `help` inside an option's argument."""
    if option == "chardev":
        return _chardev_help(options)
    schema, title, tag_field = _SUBJECTS[option]
    branches = branches_of(schema)
    tag = options.get(tag_field)
    if tag is None:
        return "\n".join([f"{title}:", *(f"  {name}" for name in sorted(branches))])
    if tag not in branches:
        return f"Parameter '{tag_field}' does not accept value '{tag}'"
    return "\n".join([f"{tag} options:", *(f"  {line}" for line in _members(branches[str(tag)]))])


def _chardev_help(options: Mapping[str, object]) -> str:
    from vhostblk.chardev.options import KINDS
    from vhostblk.chardev.registry import BACKENDS

    if options.get("backend") in (None, "help", "?"):
        return "\n".join(["Available chardev backend types:", *(f"  {name}" for name in BACKENDS)])
    lines = (f"  {name}=<{kind}>" for name, kind in KINDS.items())
    return "\n".join(["chardev options:", *lines])


def _members(struct: Any, prefix: str = "") -> Iterator[str]:
    for member in members_of(struct):
        name = prefix + member.wire_name
        schema = without_title(member.schema)[0]
        if get_origin(schema) is list:
            yield f"{name}.<n>=<{_kind(get_args(schema)[0])}>"
            continue
        if (
            isinstance(schema, type)
            and not is_union(schema)
            and hasattr(schema, "__struct_config__")
        ):
            yield from _members(schema, f"{name}.")
        elif is_union(schema) and str not in get_args(schema):
            tag_field = tag_field_of(schema)
            for tag, branch in branches_of(schema).items():
                yield f"{name}.{tag_field}={tag}"
                yield from (f"  {line}" for line in _members(branch, f"{name}."))
        else:
            yield f"{name}=<{_kind(member.schema)}>{_note(name, member)}"


def _kind(schema: Any) -> str:
    schema, title = without_title(schema)
    if title is not None:
        return "int" if title.startswith("uint") else title
    if isinstance(schema, type) and issubclass(schema, Enum):
        return "|".join(str(choice.value) for choice in schema)
    return {str: "str", bool: "bool", int: "int"}.get(schema, "object")


def _note(name: str, member: Any) -> str:
    if member.required:
        return " (required)"
    default = _INHERITED.get(name, member.default)
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    if isinstance(default, Enum):
        return f" (default: {default.value})"
    return f" (default: {default})" if isinstance(default, int | str) else ""
