# SPDX-License-Identifier: GPL-2.0-or-later
"""What the reasons of an answer say to set on the new QEMU, as ``-global`` takes it: so that a remedy can be tried.

A remedy that changes the VM itself (another machine type, no such device, another setting on the old host) takes a
restart of the guest, and is only told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from harness.qualify.explained import Explained, FieldEvidence, LostBy, LostFeature, SetAlike
from harness.qualify.model import QualifyDoc

#: By what a device's type begins with: the device behind each transport, and its property for the size of queues.
_QUEUES: Mapping[str, tuple[str, str]] = {
    "virtio-blk": ("virtio-blk-device", "queue-size"),
    "virtio-scsi": ("virtio-scsi-device", "virtqueue_size"),
    "virtio-net": ("virtio-net-device", "rx_queue_size"),
}
#: Of a network card every second queue sends.
_SENDING = ("virtio-net-device", "tx_queue_size")
_QUEUE = re.compile(r"vq\[(\d+)\]")
_WRITE_CACHE = "write-cache"


def settings_of(doc: QualifyDoc, types: Mapping[str, str]) -> tuple[str, ...]:
    """``DRIVER.PROPERTY=VALUE`` for each remedy that is one, each once.

    :param types: of the devices by the names that the document has
    """
    found: dict[str, None] = {}
    for pair in doc.abroad:
        for device in pair.devices:
            for reason in device.because:
                for explained in reason.explained:
                    found |= dict.fromkeys(_settings(explained, types.get(device.device, "")))
    return tuple(found)


def is_remediable(doc: QualifyDoc, types: Mapping[str, str]) -> bool:
    """Whether each reason that makes it a no-go has something to set: else no setting gives the VM another answer."""
    return all(
        any(next(_settings(explained, types.get(device.device, "")), None) for explained in reason.explained)
        for pair in doc.abroad
        for device in pair.devices
        for reason in device.against(pair.deciding)
    )


def _settings(explained: Explained, kind: str) -> Iterator[str]:
    if isinstance(explained, LostFeature):
        if explained.lost_by is LostBy.PROPERTY and explained.property and explained.wanted:
            yield f"{explained.driver}.{explained.property}={explained.wanted}"
        elif explained.lost_by is LostBy.BACKEND and explained.backend == _WRITE_CACHE:
            yield f"{explained.driver}.{_WRITE_CACHE}=on"
    elif isinstance(explained, FieldEvidence) and explained.setting is SetAlike.QUEUE_SIZE:
        named = next((queue for name, queue in _QUEUES.items() if kind.startswith(name)), None)
        if named is not None and explained.recorded is not None:
            queue = _QUEUE.match(explained.field or "")
            sends = queue is not None and int(queue[1]) % 2 == 1 and kind.startswith("virtio-net")
            driver, key = _SENDING if sends else named
            yield f"{driver}.{key}={explained.recorded}"
