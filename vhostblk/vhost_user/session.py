# SPDX-License-Identifier: Apache-2.0
"""The state and the rules of the protocol for one front-end, until it disconnects.

Input is a message; output are calls of the `Backend` and a reply. A session does not use sockets,
so tests and fuzzers run it on byte strings. `_RULES`, at the end, defines for each message its
length, its descriptors, and whether it has a reply of its own.

The specification leaves some choices. They are made as in libvhost-user and QEMU:

- A message that we offer is accepted even if its protocol feature was not acknowledged, because
  front-ends differ in this. Only REPLY_ACK must be acknowledged, because it changes the replies.
- A vring starts with SET_VRING_KICK, not with the first kick; or, in-band, with VRING_KICK.
- Size, addresses and base are stored when they are set, and used when the vring starts. They may be
  set while the vring runs (dirty logging does this), and take effect when the vring starts again.
  Only the dirty log settings in the addresses take effect at once. SET_VRING_KICK on a running
  vring restarts it with the new values.
- RESET_OWNER disables all vrings. Some front-ends (Cloud Hypervisor) then configure the device
again
  without stopping the vrings. So such a message stops a vring that is disabled.
- Requests that were in flight when an earlier process died count as taken. The front-end does not
  know them, so the base that it sets for such a vring is ignored.
- The valid sizes and bases of a vring depend on whether rings are packed. They are checked when
  they are set, and again when the vring starts, as features may have changed.
- INBAND_NOTIFICATIONS can't be revoked after it was acknowledged, because vrings may be kicked
  in-band.
- VERSION_1 is required when a vring starts and not before: crosvm first acknowledges only bit 30.
- If the features are not sufficient, FEATURES_OK stays clear. QEMU does not check it, nor pass it
on
  to its guest, and starts the vrings. Then the back-end decides what happens to requests
  (`Backend.refusal`).

A message that fails changes nothing. If the front-end has asked for a reply, the reply has the
failure; otherwise the front-end is disconnected. There are exceptions: the own replies of a few
messages can mean failure (GET_CONFIG: a reply without payload), and a bad SET_CONFIG, which a guest
can cause, is ignored.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhostblk.errors import reason
from vhostblk.vhost_user import payloads, postcopy
from vhostblk.vhost_user.channel import RequestChannel
from vhostblk.vhost_user.codec import FdList, encode_reply
from vhostblk.vhost_user.device_messages import LEGACY, DeviceMessages
from vhostblk.vhost_user.device_state import DeviceState
from vhostblk.vhost_user.errors import (
    DescriptorError,
    FeatureError,
    ProtocolError,
    UnknownRequestError,
    VhostUserError,
    VringIndexError,
    VringStateError,
)
from vhostblk.vhost_user.inband import InbandNotifications
from vhostblk.vhost_user.layout import (
    AVAIL_ALIGN,
    CONFIG_HEADER,
    DESC_ALIGN,
    DEVICE_STATE,
    DEVICE_STATE_NOFD,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    F_RING_PACKED,
    INFLIGHT,
    INFLIGHT_PADDED_SIZE,
    LOG,
    MAX_CONFIG_SIZE,
    MAX_FDS,
    MAX_PAYLOAD,
    MEMORY_HEADER,
    SINGLE_REGION,
    U64,
    USED_ALIGN,
    VRING_ADDR,
    VRING_F_LOG,
    VRING_INDEX_MASK,
    VRING_NOFD,
    VRING_STATE,
    BackendRequest,
    ProtocolFeature,
    Request,
)
from vhostblk.vhost_user.migration import ACK, NACK, MigrationMessages
from vhostblk.vhost_user.restate import SessionState
from vhostblk.vhost_user.rules import Answer, Remark, ReplyWithFd, Rule, fixed
from vhostblk.vhost_user.vring import Vring, check_base, check_size
from vhostblk.virtqueue.config import (
    MAX_MEM_SLOTS,
    InflightDescription,
    RegionDescription,
    VringConfig,
)
from vhostblk.virtqueue.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhostblk.vhost_user.backend import Backend
    from vhostblk.vhost_user.codec import Message

#: Protocol features offered to every front-end; LOG_SHMFD only if the back-end can log its writes.
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.INBAND_NOTIFICATIONS
    | ProtocolFeature.STATUS
    | ProtocolFeature.DEVICE_STATE
    | ProtocolFeature.PAGEFAULT
)


class Session(DeviceMessages, MigrationMessages):
    """The session of one front-end; messages are handled one after the other.

    `moved`: it continues a suspended session; the messages that restore the state are first.
    """

    def __init__(self, backend: Backend, *, moved: bool = False) -> None:
        self._backend = backend
        self._moved = moved
        #: Whether the state of another session is being restored.
        self._restating = moved
        self._vrings = [Vring() for _ in range(backend.num_queues)]
        self._features = 0
        self._protocol_features = ProtocolFeature(0)
        self._offered = F_PROTOCOL_FEATURES | F_LOG_ALL
        self._protocol_offered = PROTOCOL_FEATURES
        if backend.dirty_logging is None:
            self._offered = F_PROTOCOL_FEATURES
            self._protocol_offered &= ~ProtocolFeature.LOG_SHMFD
        if not postcopy.available():
            self._protocol_offered &= ~ProtocolFeature.PAGEFAULT
        self._channel: RequestChannel | None = None
        self._inband: InbandNotifications | None = None
        self._device_state = DeviceState()
        self._postcopy = postcopy.Postcopy()
        #: The device status that the driver has written (VIRTIO 1.3, 2.1).
        self._status = 0

    async def handle(self, message: Message) -> Answer:
        """Handle one message; its descriptors are used or closed in any case.

        Raises VhostUserError if the front-end must be disconnected; `str()` of the error names the
        message and the reason.
        """
        rule = _CONFIRMED if self._confirms(message) else _RULES.get(message.request)
        try:
            if rule is None:
                raise UnknownRequestError("not supported, and not offered")
            rule.check(message)
            reply = await rule.handler(self, message)
        except (SetupError, OSError) as error:
            return self._failed(message, rule, error)
        finally:
            message.fds.close()
        if isinstance(reply, Remark):
            ack = encode_reply(message.request, U64.pack(ACK)) if self._wants_ack(message) else b""
            return Answer(ack, remark=reply.line)
        if isinstance(reply, ReplyWithFd):
            return Answer(encode_reply(message.request, reply.payload), fds=FdList([reply.fd]))
        if reply is not None:
            return Answer(encode_reply(message.request, reply))
        if self._wants_ack(message):
            return Answer(encode_reply(message.request, U64.pack(ACK)))
        return Answer()

    def _wants_ack(self, message: Message) -> bool:
        return message.need_reply and ProtocolFeature.REPLY_ACK in self._protocol_features

    def _failed(self, message: Message, rule: Rule | None, error: SetupError | OSError) -> Answer:
        line = f"{message.name}: {reason(error)}"
        if isinstance(error, ProtocolError):
            raise ProtocolError(line) from error
        if rule and rule.failure is not None:
            return Answer(encode_reply(message.request, rule.failure), line)
        if not (rule and rule.own_reply) and self._wants_ack(message):
            return Answer(encode_reply(message.request, U64.pack(NACK)), line)
        if message.request == Request.SET_CONFIG:
            return Answer(failure=line)
        raise VhostUserError(line) from error

    # Moving to another process

    @property
    def state(self) -> SessionState:
        """The state that another session needs to continue this one."""
        return SessionState(
            self._protocol_features,
            self._features,
            self._status,
            self._backend.written_config(),
            self._device_state.loading,
            self._vrings,
        )

    def restated(self, *, config_changed: bool) -> None:
        """End the replay, and notify the front-end if its configuration space has changed."""
        self._restating = False
        if config_changed and self._channel is not None:
            self._channel.config_changed()

    async def suspend(self) -> SessionState:
        """Stop all vrings, and return the state, in which they run from where they have stopped."""
        vrings = []
        for index, vring in enumerate(self._vrings):
            stopped = replace(vring)
            if vring.running is not None:
                stopped.running = replace(vring.running, next_avail=await self._stop(index))
            vrings.append(stopped)
        return self.state._replace(vrings=vrings)

    def close(self) -> None:
        """Release the session's resources; the owner of session and backend resets the backend."""
        for vring in self._vrings:
            vring.call.close()
        self._device_state.close()
        self._postcopy.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._inband is not None:
            self._inband.close()
            self._inband = None

    # Features

    async def _get_features(self, message: Message) -> bytes:
        return U64.pack(self._backend.device_features | self._offered)

    async def _set_features(self, message: Message) -> None:
        (features,) = U64.unpack(message.payload)
        surplus = features & ~(self._backend.device_features | self._offered)
        if surplus:
            raise FeatureError(f"features {surplus:#x} were not offered")
        running = any(vring.started for vring in self._vrings)
        others_change = bool((features ^ self._features) & ~F_LOG_ALL)
        if others_change:
            self._refuse_enabled_vrings()
        if self._backend.dirty_logging is not None:
            await self._backend.dirty_logging.set_logging(bool(features & F_LOG_ALL))
        if others_change:
            await self._stop_vrings()
        self._features = features
        if running and not others_change:
            return
        self._backend.set_features(features & ~(F_PROTOCOL_FEATURES | F_LOG_ALL))
        if not features & F_PROTOCOL_FEATURES:
            for index in range(len(self._vrings)):
                self._set_enabled(index, True)

    async def _get_protocol_features(self, message: Message) -> bytes:
        return U64.pack(self._protocol_offered)

    async def _set_protocol_features(self, message: Message) -> None:
        features = payloads.protocol_features(message, self._protocol_offered)
        inband = ProtocolFeature.INBAND_NOTIFICATIONS in features
        if self._inband is not None and not inband:
            raise FeatureError("INBAND_NOTIFICATIONS was acknowledged before")
        self._protocol_features = features
        if inband and self._inband is None:
            self._inband = InbandNotifications(moved=self._moved)
            if self._channel is not None:
                self._inband.set_channel(self._channel)

    async def _get_queue_num(self, message: Message) -> bytes:
        return U64.pack(len(self._vrings))

    # Ownership

    async def _goodbye(self, message: Message) -> None:
        raise ProtocolError("the front-end ends the session")

    async def _set_owner(self, message: Message) -> None:
        pass

    async def _reset_owner(self, message: Message) -> None:
        for index in range(len(self._vrings)):
            self._set_enabled(index, False)

    # Reset

    async def _reset_device(self, message: Message) -> None:
        await self._reset()

    async def _reset(self) -> None:
        """Stop all vrings and reset the driver's settings; memory and channel stay.

        QEMU before 8.0 sends GET_VRING_BASE only after SET_STATUS 0, as for a migration.
        """
        for index, vring in enumerate(self._vrings):
            base = await self._stop(index) if vring.started else 0
            self._postcopy.drop(index)
            self._set_enabled(index, False)
            vring.call.close()
            self._backend.set_vring_call(index, None)
            self._backend.set_vring_err(index, None)
            self._vrings[index] = Vring(base=base)
        self._backend.set_inflight(None)
        if self._backend.dirty_logging is not None:
            await self._backend.dirty_logging.set_logging(False)
        self._backend.set_features(0)
        self._features = 0
        self._status = 0

    # Memory

    async def _set_mem_table(self, message: Message) -> bytes | None:
        regions = payloads.memory_table(message)
        mappings = await self._backend.set_memory(regions)
        if not self._postcopy.listening:
            return None
        told = map(self._arriving, regions, mappings)
        return MEMORY_HEADER.pack(len(regions), 0) + b"".join(told)

    async def _get_max_mem_slots(self, message: Message) -> bytes:
        return U64.pack(MAX_MEM_SLOTS)

    async def _add_mem_reg(self, message: Message) -> bytes | None:
        padding, guest_addr, size, user_addr, offset = SINGLE_REGION.unpack(message.payload)
        (fd,) = message.fds.take_all()
        region = RegionDescription(guest_addr, size, user_addr, offset, fd)
        mapping = await self._backend.add_region(region)
        if not self._postcopy.listening:
            return None
        return U64.pack(padding) + self._arriving(region, mapping)

    async def _rem_mem_reg(self, message: Message) -> None:
        _padding, guest_addr, size, user_addr, _offset = SINGLE_REGION.unpack(message.payload)
        await self._backend.remove_region(guest_addr, size, user_addr)

    # Requests in flight

    async def _get_inflight_fd(self, message: Message) -> ReplyWithFd:
        *_, num_queues, queue_size = payloads.inflight(message, len(self._vrings))
        made = self._backend.make_inflight(num_queues, queue_size)
        payload = INFLIGHT.pack(made.mmap_size, made.mmap_offset, num_queues, queue_size)
        return ReplyWithFd(payload.ljust(len(message.payload), b"\0"), made.fd)

    async def _set_inflight_fd(self, message: Message) -> None:
        size, offset, num_queues, queue_size = payloads.inflight(message, len(self._vrings))
        (fd,) = message.fds.take_all()
        self._backend.set_inflight(InflightDescription(size, offset, num_queues, queue_size, fd))

    # Vrings

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise VringIndexError(f"vring {index} of {len(self._vrings)} (option num-queues)")
        return self._vrings[index]

    async def _set_vring_num(self, message: Message) -> None:
        index, size = VRING_STATE.unpack(message.payload)
        vring = self._vring(index)
        check_size(index, size, packed=self._may_be_packed)
        vring.size = size

    @property
    def _packed(self) -> bool:
        return bool(self._features & F_RING_PACKED)

    @property
    def _may_be_packed(self) -> bool:
        """Whether a vring that is set up now may be packed.

        While a state is restored, it may be packed against the features, which may have changed
        after the vring started.
        """
        return self._packed or self._restating

    async def _set_vring_addr(self, message: Message) -> None:
        index, flags, desc, used, avail, log = VRING_ADDR.unpack(message.payload)
        vring = self._vring(index)
        for name, address, align in (
            ("descriptor table", desc, DESC_ALIGN),
            ("avail ring", avail, AVAIL_ALIGN),
            ("used ring", used, USED_ALIGN),
        ):
            if address % align:
                raise VringStateError(
                    f"vring {index}: {name} at {address:#x}, not a multiple of {align}"
                )
        log_addr = log if flags & VRING_F_LOG and self._backend.dirty_logging is not None else None
        if vring.started and log_addr != vring.log_addr:
            await self._backend.set_vring_log(index, log_addr)
        vring.addresses = (desc, avail, used)
        vring.log_addr = log_addr

    async def _set_vring_base(self, message: Message) -> None:
        index, base = VRING_STATE.unpack(message.payload)
        vring = self._vring(index)
        check_base(index, base, packed=self._may_be_packed)
        vring.base = base
        vring.base_set_since_start = True

    async def _get_vring_base(self, message: Message) -> bytes:
        index, _unused = VRING_STATE.unpack(message.payload)
        vring = self._vring(index)
        self._postcopy.drop(index)
        if vring.started:
            vring.base = await self._stop(index)
        return VRING_STATE.pack(index, vring.base)

    async def _set_vring_enable(self, message: Message) -> None:
        index, enable = VRING_STATE.unpack(message.payload)
        self._vring(index)
        if enable > 1:
            raise VringStateError(f"vring {index}: neither enabled nor disabled but {enable}")
        self._set_enabled(index, bool(enable))

    def _set_enabled(self, index: int, enabled: bool) -> None:
        self._backend.set_vring_enabled(index, enabled)
        self._vrings[index].enabled = enabled

    def _vring_fd(self, message: Message) -> tuple[int, FdList]:
        """Check a message that sets an eventfd; the list has one descriptor, or none with NOFD."""
        (value,) = U64.unpack(message.payload)
        index = value & VRING_INDEX_MASK
        self._vring(index)
        if value & ~(VRING_INDEX_MASK | VRING_NOFD):
            raise VringIndexError(f"unknown bits in {value:#x}")
        if value & VRING_NOFD:
            return index, FdList()  # an unexpected descriptor is closed with the message
        if len(message.fds) != 1:
            raise DescriptorError(f"vring {index}: the file descriptor is missing")
        return index, message.fds

    async def _set_vring_kick(self, message: Message) -> None:
        index, fds = self._vring_fd(message)
        await self._start(index, fds.take_only, inband=False)

    async def _vring_kick(self, message: Message) -> None:
        index, reserved = VRING_STATE.unpack(message.payload)
        vring, inband = self._vring(index), self._inband
        if inband is None:
            raise FeatureError("INBAND_NOTIFICATIONS was not acknowledged")
        if reserved:
            raise VringStateError(f"vring {index}: {reserved} where 0 is reserved")
        if not vring.started:
            await self._start(index, lambda: inband.kick_fd(index), inband=True)
        inband.kick(index)

    async def _start(
        self, index: int, take_kick: Callable[[], int | None], *, inband: bool
    ) -> None:
        vring = self._vrings[index]
        if self._is_legacy:
            raise FeatureError(LEGACY)
        if not vring.size or vring.addresses is None:
            raise VringStateError(f"vring {index}: started before its size and addresses are set")
        if self._postcopy.listening:
            await self._backend.claim()
            self._postcopy.defer(index, take_kick())
            vring.inband = inband
            return
        if vring.started:
            await self._restartable_stop(index)
        check_size(index, vring.size, packed=self._packed)
        check_base(index, vring.base, packed=self._packed)
        desc, avail, used = vring.addresses
        config = VringConfig(
            *(index, vring.size, desc, avail, used, vring.base, vring.log_addr), self._packed
        )
        if self._inband is not None:
            self._notify_inband(index, self._inband)
        await self._backend.start_vring(config, take_kick())
        vring.running, vring.inband = config, inband
        vring.base_set_since_start = False

    def _notify_inband(self, index: int, inband: InbandNotifications) -> None:
        """Notify in-band if the front-end has neither set a descriptor nor polls."""
        vring = self._vrings[index]
        if not vring.call_set:
            self._give_call(index, inband.notice_fd(BackendRequest.VRING_CALL, index))
            vring.call_set = True
        if not vring.err_set:
            self._backend.set_vring_err(index, inband.notice_fd(BackendRequest.VRING_ERR, index))
            vring.err_set = True

    async def _set_vring_call(self, message: Message) -> None:
        index, fds = self._vring_fd(message)
        self._give_call(index, fds.take_only())
        self._vrings[index].call_set = True

    def _give_call(self, index: int, fd: int | None) -> None:
        duplicate = FdList()
        if fd is not None:
            try:
                duplicate.extend([os.dup(fd)])
            except OSError:
                os.close(fd)
                raise
        try:
            self._backend.set_vring_call(index, fd)
        except (SetupError, OSError):
            duplicate.close()
            raise
        self._vrings[index].call.close()
        self._vrings[index].call = duplicate

    async def _set_vring_err(self, message: Message) -> None:
        index, fds = self._vring_fd(message)
        self._backend.set_vring_err(index, fds.take_only())
        self._vrings[index].err_set = True

    async def _stop(self, index: int) -> int:
        """Stop a vring; if the front-end restarts it, it sets the call descriptor again."""
        vring = self._vrings[index]
        next_avail = await self._backend.stop_vring(index)
        vring.running = None
        vring.call_set = False
        vring.call.close()
        return next_avail

    async def _restartable_stop(self, index: int) -> None:
        """Stop a vring that will continue at the same place, unless the front-end sets a base."""
        vring = self._vrings[index]
        next_avail = await self._backend.stop_vring(index)
        vring.running = None
        if not vring.base_set_since_start:
            vring.base = next_avail
        for fd in vring.call.take_all():
            self._give_call(index, fd)

    def _refuse_enabled_vrings(self) -> None:
        """Raise FeatureError if a vring is running and enabled: features can't change then."""
        for index, vring in enumerate(self._vrings):
            if vring.started and vring.enabled:
                raise FeatureError(f"features can't change while vring {index} runs")

    async def _stop_vrings(self) -> None:
        for index, vring in enumerate(self._vrings):
            if vring.started:
                await self._restartable_stop(index)

    # Channel

    async def _set_backend_req_fd(self, message: Message) -> None:
        (fd,) = message.fds.take_all()
        channel = RequestChannel(fd)
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        self._backend.set_channel(channel)
        if self._inband is not None:
            self._inband.set_channel(channel)


_INFLIGHT_SIZES = (INFLIGHT.size, INFLIGHT_PADDED_SIZE)
_CONFIG_SIZES = (CONFIG_HEADER.size, CONFIG_HEADER.size + MAX_CONFIG_SIZE)

#: "Front-end message types": those that we offer.
_RULES: dict[int, Rule] = {
    Request.NONE: Rule(Session._goodbye, 0, MAX_PAYLOAD, 0, MAX_FDS),
    Request.GET_FEATURES: fixed(Session._get_features, reply=True),
    Request.SET_FEATURES: fixed(Session._set_features, U64.size),
    Request.SET_OWNER: fixed(Session._set_owner),
    Request.RESET_OWNER: fixed(Session._reset_owner),
    Request.SET_MEM_TABLE: Rule(Session._set_mem_table, 0, MAX_PAYLOAD, 0, MAX_FDS),
    Request.SET_LOG_BASE: Rule(Session._set_log_base, LOG.size, LOG.size, 1, 1, own_reply=True),
    Request.SET_LOG_FD: Rule(Session._set_log_fd, 0, U64.size, 1, 1),
    Request.SET_VRING_NUM: fixed(Session._set_vring_num, VRING_STATE.size),
    Request.SET_VRING_ADDR: fixed(Session._set_vring_addr, VRING_ADDR.size),
    Request.SET_VRING_BASE: fixed(Session._set_vring_base, VRING_STATE.size),
    Request.GET_VRING_BASE: fixed(Session._get_vring_base, VRING_STATE.size, reply=True),
    Request.SET_VRING_KICK: fixed(Session._set_vring_kick, U64.size, fds=(0, 1)),
    Request.VRING_KICK: fixed(Session._vring_kick, VRING_STATE.size),
    Request.SET_VRING_CALL: fixed(Session._set_vring_call, U64.size, fds=(0, 1)),
    Request.SET_VRING_ERR: fixed(Session._set_vring_err, U64.size, fds=(0, 1)),
    Request.GET_PROTOCOL_FEATURES: fixed(Session._get_protocol_features, reply=True),
    Request.SET_PROTOCOL_FEATURES: fixed(Session._set_protocol_features, U64.size),
    Request.GET_QUEUE_NUM: fixed(Session._get_queue_num, reply=True),
    Request.SET_VRING_ENABLE: fixed(Session._set_vring_enable, VRING_STATE.size),
    Request.SET_BACKEND_REQ_FD: fixed(Session._set_backend_req_fd, fds=(1, 1)),
    Request.GET_CONFIG: Rule(Session._get_config, *_CONFIG_SIZES, failure=b""),
    Request.SET_CONFIG: Rule(Session._set_config, *_CONFIG_SIZES),
    Request.RESET_DEVICE: fixed(Session._reset_device),
    Request.SET_STATUS: fixed(Session._set_status, U64.size),
    Request.GET_STATUS: fixed(Session._get_status, reply=True),
    Request.GET_INFLIGHT_FD: Rule(Session._get_inflight_fd, *_INFLIGHT_SIZES, own_reply=True),
    Request.SET_INFLIGHT_FD: Rule(Session._set_inflight_fd, *_INFLIGHT_SIZES, 1, 1),
    Request.GET_MAX_MEM_SLOTS: fixed(Session._get_max_mem_slots, reply=True),
    Request.ADD_MEM_REG: fixed(Session._add_mem_reg, SINGLE_REGION.size, fds=(1, 1)),
    Request.POSTCOPY_ADVISE: fixed(Session._postcopy_advise, reply=True),
    Request.POSTCOPY_LISTEN: fixed(Session._postcopy_listen),
    Request.POSTCOPY_END: Rule(Session._postcopy_end, 0, 0, failure=U64.pack(NACK)),
    Request.SET_DEVICE_STATE_FD: Rule(
        Session._set_device_state_fd,
        DEVICE_STATE.size,
        DEVICE_STATE.size,
        1,
        1,
        failure=U64.pack(NACK | DEVICE_STATE_NOFD),
    ),
    Request.CHECK_DEVICE_STATE: Rule(Session._check_device_state, 0, 0, failure=U64.pack(NACK)),
    Request.REM_MEM_REG: fixed(Session._rem_mem_reg, SINGLE_REGION.size, fds=(0, 1)),
}

#: The front-end's confirmation of memory messages that were replied to, in a post-copy migration.
_CONFIRMED = fixed(Session._confirmed, U64.size)
