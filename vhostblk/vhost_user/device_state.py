# SPDX-License-Identifier: Apache-2.0
"""Transfer of the device's own state in a migration ("Migrating back-end state").

A disk has no state of its own: the driver's choices are in the front-end's features and
configuration space, and no request is in flight while all vrings are stopped. So saving writes
nothing, and loading accepts nothing: any data would be the state of another device.
"""

from __future__ import annotations

import os
import stat

from vhostblk.vhost_user.errors import DescriptorError, DeviceStateError
from vhostblk.vhost_user.layout import DEVICE_STATE_LOAD, DEVICE_STATE_SAVE, DEVICE_STATE_STOPPED
from vhostblk.virtqueue import nowait


class DeviceState:
    """The last transfer that was begun."""

    def __init__(self) -> None:
        self._incoming: int | None = None

    @property
    def loading(self) -> bool:
        """Whether a transfer for loading was begun, and not checked yet."""
        return self._incoming is not None

    def begin(self, direction: int, phase: int, fd: int) -> None:
        """Begin to save to, or to load from, a pipe, which this object then owns.

        Raises VhostUserError, after closing the pipe, if this is not possible.
        """
        self.close()
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                raise DescriptorError("the file descriptor is not a pipe")
            if phase != DEVICE_STATE_STOPPED:
                raise DeviceStateError(f"unknown phase {phase} of a migration")
            if direction not in (DEVICE_STATE_SAVE, DEVICE_STATE_LOAD):
                raise DeviceStateError(f"unknown direction {direction} of a transfer")
            if direction == DEVICE_STATE_LOAD:
                os.set_blocking(fd, False)  # Linux before 6.5 has no other way
                self._incoming = os.dup(fd)
        finally:
            os.close(fd)

    def check(self) -> None:
        """Check the result of the transfer, after the front-end has closed its end.

        Raises DeviceStateError if the transfer has failed.
        """
        if self._incoming is None:
            return
        try:
            surplus = nowait.read(self._incoming, 1)
        except BlockingIOError:
            raise DeviceStateError("the device's state has not ended yet") from None
        finally:
            self.close()
        if surplus:
            raise DeviceStateError("the state is that of another device")

    def close(self) -> None:
        """Cancel a transfer."""
        if self._incoming is not None:
            os.close(self._incoming)
            self._incoming = None
