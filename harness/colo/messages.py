# SPDX-License-Identifier: GPL-2.0-or-later
"""COLO messages between primary and secondary.

Every message is a big-endian u32 (``migration/colo.c:colo_send_message``); VMSTATE_SIZE carries a u64 behind it
(``colo_send_message_value``). Names are those of QAPI's ``COLOMessage`` (``qapi/migration.json``).
"""

from __future__ import annotations

import struct
from enum import IntEnum, StrEnum

U32 = struct.Struct(">I")
SIZE_MESSAGE = struct.Struct(">IQ")
RETURN_PATH_HEADER = struct.Struct(">HH")

#: Return-path message that a new build sends before CHECKPOINT_READY (``migration/migration.h:MIG_RP_MSG_SHUT``).
RETURN_PATH_SHUT = 1


class Message(IntEnum):
    """``COLOMessage``: value, sender."""

    CHECKPOINT_READY = 0  # secondary
    CHECKPOINT_REQUEST = 1  # primary
    CHECKPOINT_REPLY = 2  # secondary
    VMSTATE_SEND = 3  # primary
    VMSTATE_SIZE = 4  # primary, with a u64
    VMSTATE_RECEIVED = 5  # secondary
    VMSTATE_LOADED = 6  # secondary


class Step(StrEnum):
    """Where in the exchange something went wrong, in the order in which it happens; the value is what is stored."""

    RECORD = "record"  # the guest ran on its way to a phase, under the QEMU that records
    SAVE = "save"  # the machine was saved, by the QEMU that records
    CONNECT = "connect"
    INCOMING = "incoming"  # the whole stream, until CHECKPOINT_READY
    REQUEST = "request"  # CHECKPOINT_REQUEST until CHECKPOINT_REPLY: stopping the guest
    SEND = "send"  # VMSTATE_SEND until VMSTATE_RECEIVED: RAM and the device buffer
    LOAD = "load"  # VMSTATE_RECEIVED until VMSTATE_LOADED: pre_load, post_load, resume
    RESUME = "resume"  # the guest was started; only an engine that starts it itself can tell this from LOAD
    AFTER = "after"  # behind the last load
    MAIN_LOOP = "main-loop"  # every load was acknowledged, and QMP gets no answer
    FAILOVER = "failover"  # x-colo-lost-heartbeat, or what else brings the guest to run by itself


def name_of(value: int) -> str:
    """The QAPI name of a message number, or the number itself."""
    try:
        return Message(value).name
    except ValueError:
        return f"0x{value:08x}"
