# SPDX-License-Identifier: Apache-2.0
"""Iothreads: threads that serve queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vhostblk.engine.iothread import IothreadOptions
from vhostblk.objects.base import UserObject
from vhostblk.objects.types import QomType, register_type
from vhostblk.schema.objects.iothread import IothreadProperties
from vhostblk.schema.options import object_options

if TYPE_CHECKING:
    from vhostblk.objects.base import Surroundings
    from vhostblk.schema.object import ObjectOptions

register_type(
    QomType(
        "event-loop-base",
        "object",
        True,
        "user-creatable",
        {"thread-pool-min": "int", "aio-max-batch": "int", "thread-pool-max": "int"},
    )
)


class IothreadObject(UserObject):
    """One iothread; the thread starts with the first queue."""

    options_type: ClassVar[type[ObjectOptions]] = IothreadProperties
    qom_type: ClassVar[QomType] = register_type(
        QomType(
            "iothread",
            "event-loop-base",
            properties={"poll-max-ns": "int", "poll-grow": "int", "poll-shrink": "int"},
        )
    )

    def __init__(self, options: IothreadProperties, around: Surroundings) -> None:
        super().__init__(options, around)
        around.iothreads.define(self.id, _engine_options(options))

    def remove(self) -> None:
        """Stop the thread."""
        self.around.iothreads.remove(self.id)

    def write(self, name: str, value: object) -> None:
        """Change how the thread polls."""
        plain: dict[str, Any] = self.definition()
        changed = object_options({**plain, name: value})
        assert isinstance(changed, IothreadProperties)
        self.options = changed
        self.around.iothreads.change(self.id, _engine_options(changed))


def _engine_options(options: IothreadProperties) -> IothreadOptions:
    return IothreadOptions(
        poll_max_ns=options.poll_max_ns,
        poll_grow=options.poll_grow,
        poll_shrink=options.poll_shrink,
        aio_max_batch=options.aio_max_batch,
        pool_threads=options.thread_pool_max,
    )
