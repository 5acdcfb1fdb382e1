# SPDX-License-Identifier: GPL-2.0-or-later
"""A state pack that can be given away: without the guest's memory, and without what names the guest.

One phase of a pack becomes the phase ``adopted`` of another one, whose guest stays halted. RAM is left out: every page
is zero, but for what a load reads of virtio rings. QEMU compares the indices that a ring has in RAM with those of the
saved state (``virtio_load``, ``hw/virtio/virtio.c``), so that two numbers of each ring are kept: that of the used ring,
and the available one as far as the device has taken requests. Nothing is then waiting in any ring, and the descriptors
are gone. Content of ROMs stays, for QEMU brings the same ones.

Sections that look into RAM in other ways, or that hold pictures and secrets, are left out (:data:`LEFT_OUT`), and
buffers and the general registers of CPUs are emptied. MAC addresses, serials, UUIDs and names are replaced by others of
the same length, in the plan and wherever their bytes are in a section. What was printed on the console, and what QEMU
showed of the machine, is not in the pack any more.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
from harness.adopt.alike import IDENTITY
from harness.devices.device import Device
from harness.errors import HostError, StreamError, UsageError
from harness.guests.identity import GuestIdentity
from harness.guests.origin import LeftOut, VmOrigin, Without, label
from harness.guests.plan import GuestPlan
from harness.names import ADOPTED
from harness.packs.manifest import MANIFEST, PAGES, DeviceModel, Manifest, contents_of, file_model, is_rom
from harness.packs.pack import Recording, StatePack
from harness.packs.packwriter import index_bytes
from harness.state.transforms import label_of, labels_of
from harness.stream.fields import Field, walk
from harness.stream.model import Section
from harness.stream.vmdesc import decode
from harness.stream.wire import PAGE_SIZE

#: Sections that are not given away: they look into the guest's RAM when they are loaded, or hold pictures and secrets.
LEFT_OUT = re.compile(
    r"kvm-tpr-opt|slirp|(.*/)?(xhci|ehci|uhci|ohci|nvme|virtio-gpu|virtio-crypto|tpm-.*|uefi-vars.*|usb-.*)"
)
#: Fields with what a guest wrote, read or typed; no load looks at them.
_CONTENT = re.compile(
    r"(?:.*[./])?(?:queue\.data|\w*fifo\w*\[\d+\]|\w*buf(?:fer|f)?|ne2000\.mem|script_ram|scratch)"
    r"|(?:.*/)?env\.(?:regs|xregs|usr_regs|fiq_regs|fpregs|xmm_regs|opmask_regs|vfp\.zregs|cr\[2\]|dr)\b.*"
)
#: ROM blocks that name the guest.
_NAMING_ROM = re.compile(r"vmgenid|smbios")
#: Properties that name a device by a text; a MAC address is one by its form.
_TEXTS = IDENTITY - {"mac"}
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")
#: Values that somebody chose among few.
_PLAIN = re.compile(r"on|off|auto|(0x)?[0-9A-Fa-f]*[KMGTkmgt]?|[0-9A-Fa-f]{1,2}(\.[0-7])?")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
#: Of the facts of the host: what reads them, and the dump of the QEMU that recorded.
_HOST = frozenset({"schema", "vmstate"})
#: Shorter texts are met by chance.
_SHORTEST = 4
_OWN_MAC = "52:54:00:00:00:"
_QUEUE = re.compile(r"(?:virtio/virtqueues/)?vq\[(\d+)\]\.(?:vring\.)?(num|desc|avail|used|last_avail_idx)")
#: Bytes in front of the ring of a ``vring_avail`` and ``vring_used``, and behind it; the index is the second number.
_RING_HEAD, _INDEX_AT, _AVAILABLE_ENTRY = 4, 2, 2
_LEGACY_ALIGN = 4096
_FOUR_GIB = 1 << 32
#: Where RAM below 4 GiB ends, by the family of a PC: so much there is, if that is not all; else so much.
_LOW = {"pc": (0xE0000000, 0xC0000000), "q35": (0xB0000000, 0x80000000)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What became of a pack.

    :param phase: that was taken
    :param left_out: labels of sections that are not in it any more
    :param replaced: properties whose values were replaced, as ``TYPE.PROPERTY``
    :param changed: labels of sections in which bytes of such values were replaced
    :param emptied: labels of sections with buffers or registers that were emptied
    :param pages: pages of guest RAM and other memory whose content was taken out
    :param rings: rings of which the indices were kept
    :param sections: labels of sections that remain
    :param ids: of devices and backends, as somebody gave them
    :param texts: other words among the values of properties, as ``TYPE.PROPERTY=VALUE``
    :param roms: blocks whose content remains
    """

    phase: str
    left_out: tuple[str, ...]
    replaced: tuple[str, ...]
    changed: tuple[str, ...]
    emptied: tuple[str, ...]
    pages: int
    rings: int
    sections: tuple[str, ...]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    roms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ring:
    """One virtio ring, by guest addresses.

    :param taken: requests that the device has taken, modulo 65536
    """

    available: int
    used: int
    taken: int


def redact_pack(pack: StatePack, phase: str, out: Path, names: Collection[str] = ()) -> Redaction:
    """Write the folder of a pack without what was its guest's.

    :param phase: of the pack
    :param out: must not exist yet
    :param names: further texts that name the guest; those of fewer than four characters are not looked for
    :raises UsageError: a text that names the guest is in the pack all the same, as that of an id
    :raises HostError: no space, or the folder cannot be written
    """
    try:
        return _Writing(pack, pack.recordings[phase], out, names).run()
    except OSError as error:
        raise HostError(f"cannot write {out}: {error.strerror}") from error


class _Writing:
    """One phase of a pack on its way to another pack."""

    def __init__(self, pack: StatePack, recording: Recording, out: Path, names: Collection[str]) -> None:
        self._pack, self._recording, self._out = pack, recording, out
        self._main, self._main_start = pack.manifest.main_ram()
        self._plan, self._replaced, secrets = redacted_plan(pack.manifest.plan.unbooted())
        secrets |= {name: "x" * len(name) for name in names}
        secrets |= {mac: _other_mac(mac) for mac in _macs(recording.sections)}
        # zeros are met by chance
        self._secrets = {old: new for old, new in secrets.items() if set(old) - set("0:-x")}
        self._changed: list[str] = []
        self._emptied: list[str] = []

    def run(self) -> Redaction:
        sections = [section for section in self._recording.sections if not LEFT_OUT.fullmatch(section.idstr)]
        labels = labels_of(sections)
        left_out = [label for label in labels_of(self._recording.sections) if label not in labels]
        kept = [self._without_content(section) for section in sections]
        rings = list(_rings(sections))
        (self._out / ADOPTED).mkdir(parents=True)
        taken_out = self._write_memory(rings)
        self._write_rest(kept)
        self._write(MANIFEST, self._manifest(left_out).text().encode())
        self._check()
        return Redaction(
            phase=self._recording.name,
            left_out=tuple(left_out),
            replaced=tuple(dict.fromkeys(self._replaced)),
            changed=tuple(dict.fromkeys(self._changed)),
            emptied=tuple(dict.fromkeys(self._emptied)),
            pages=taken_out,
            rings=len(rings),
            sections=tuple(labels),
            ids=tuple(dict.fromkeys((*(d.id for d in self._plan.devices if d.id), *self._plan.backends))),
            texts=tuple(dict.fromkeys(_texts(self._plan, self._replaced))),
            roms=tuple(block.name for block in self._pack.manifest.blocks if _stays(block.name)),
        )

    def _write(self, name: str, content: bytes) -> None:
        (self._out / name).write_bytes(content)

    def _without_content(self, section: Section) -> Section:
        emptied = emptied_bytes(section)
        payload = replaced_bytes(emptied, self._secrets)
        if emptied != section.payload:
            self._emptied.append(label_of(section))
        if payload != emptied:
            self._changed.append(label_of(section))
        return replace(section, payload=payload)

    def _write_rest(self, sections: Iterable[Section]) -> None:
        """All of the phase but its memory."""
        contents = {
            "head.bin": self._recording.head,
            "setup.bin": self._recording.setup,
            "devices.bin": b"".join(section.encode() for section in sections),
            "vmdesc.json": self._recording.vmdesc.text,
            "console.log": b"",
        }
        for name, content in contents.items():
            self._write(f"{ADOPTED}/{name}", content)

    def _write_memory(self, rings: Iterable[_Ring]) -> int:
        """ROMs as they were, rings with their indices alone, nothing else; how many pages were taken out."""
        patched = self._ring_pages(rings)
        pages: dict[bytes, int] = {}
        index, start, taken_out = array("I"), 0, 0
        for block in self._pack.manifest.blocks:
            stays = _stays(block.name)
            for number in range(block.size_bytes // PAGE_SIZE):
                old = self._recording.index[start + number]
                page = self._page(old) if stays else patched.get(number) if block.name == self._main.name else None
                taken_out += bool(old) and not stays
                index.append(0 if page is None else pages.setdefault(page, len(pages) + 1))
            start += block.size_bytes // PAGE_SIZE
        self._write(PAGES, b"".join(pages))
        self._write(f"{ADOPTED}/ram.index", index_bytes(index))
        return taken_out

    def _page(self, number: int) -> bytes | None:
        found = self._pack.page(number)
        return None if found is None else bytes(found)

    def _ring_pages(self, rings: Iterable[_Ring]) -> Mapping[int, bytes]:
        """Pages of the main RAM block that hold an index."""
        pages: dict[int, bytearray] = {}
        for ring in rings:
            used = self._read(ring.used + _INDEX_AT)
            for address, value in ((ring.available, ring.taken), (ring.used, used)):
                offset = self._offset(address + _INDEX_AT)
                if offset is not None:
                    page = pages.setdefault(offset // PAGE_SIZE, bytearray(PAGE_SIZE))
                    struct.pack_into("<H", page, offset % PAGE_SIZE, value)
        return {number: bytes(page) for number, page in pages.items() if any(page)}

    def _offset(self, address: int) -> int | None:
        family, base = self._pack.manifest.family, self._pack.architecture.ram_base
        return ram_offset(address, self._main.size_bytes, family, base)

    def _read(self, address: int) -> int:
        """A number of 16 bits in the guest's RAM."""
        offset = self._offset(address)
        if offset is None:
            return 0
        page = self._page(self._recording.index[self._main_start + offset // PAGE_SIZE])
        return 0 if page is None else int(struct.unpack_from("<H", page, offset % PAGE_SIZE)[0])

    def _manifest(self, left_out: Sequence[str]) -> Manifest:
        old = self._pack.manifest
        phase = next(each for each in old.phases if each.name == self._recording.name)
        phases = [phase.model_copy(update={"name": ADOPTED})]
        update: dict[str, Any] = {
            "qemu": {**old.qemu, "path": Path(old.qemu["path"]).name},
            "plan": self._plan,
            "guest": GuestIdentity(name=ADOPTED),
            "origin": redacted_origin(old.origin, left_out),
            "devices": [_redacted_device(device, left_out) for device in old.devices],
            "phases": phases,
            "files": {name: file_model(self._out / name) for name in contents_of([ADOPTED])},
            "host": {key: value for key, value in old.host.items() if key in _HOST},
            "roms": {name: rom for name, rom in old.roms.items() if _stays(name)},
            "packed": {},
            "created": datetime.now(UTC).date().isoformat(),
            "program": f"postload {harness.__version__}",
        }
        return Manifest.model_validate(old.model_copy(update=update).model_dump(by_alias=True))

    def _check(self) -> None:
        for name in (MANIFEST, *contents_of([ADOPTED])):
            content = (self._out / name).read_bytes()
            for old, new in self._secrets.items():
                if old != new and any(form in content for form in _forms(old)):
                    raise UsageError(
                        f"{self._pack.source}: {old!r} is still in {name} of the redacted pack: expected ids of "
                        "devices and disks that do not name the guest"
                    )


def redacted_origin(old: VmOrigin | None, left_out: Sequence[str]) -> VmOrigin:
    """Without the VM's name and what a QEMU said of its host, and with what is left out."""
    origin = VmOrigin() if old is None else old
    kept = tuple(each.model_copy(update={"said": ""}) for each in origin.left_out)
    more = [LeftOut(why=Without.REDACTED, type="RAM")]
    if left_out:
        more.append(LeftOut(why=Without.REDACTED, type="section", names=tuple(map(label, left_out))))
    return origin.model_copy(update={"name": "", "left_out": kept}).plus(*more)


def redacted_plan(plan: GuestPlan) -> tuple[GuestPlan, list[str], dict[str, str]]:
    """The plan with other addresses, serials and UUIDs; which properties that were, and old texts to new ones."""
    secrets: dict[str, str] = {}
    replaced: list[str] = []
    devices = []
    for placed in plan.devices:
        properties, keys = _redacted_properties(placed.properties, secrets)
        replaced += [f"{placed.type}.{key}" for key in keys]
        devices.append(placed.model_copy(update={"properties": properties}))
    return plan.model_copy(update={"devices": tuple(devices)}), replaced, secrets


def _texts(plan: GuestPlan, replaced: Collection[str]) -> Iterator[str]:
    for placed in plan.devices:
        for key, value in placed.properties.items():
            name = f"{placed.type}.{key}"
            if isinstance(value, str) and name not in replaced and not _PLAIN.fullmatch(value):
                yield f"{name}={value}"


def _redacted_properties(
    properties: Mapping[str, bool | int | str], secrets: dict[str, str]
) -> tuple[dict[str, bool | int | str], list[str]]:
    found: dict[str, bool | int | str] = {}
    keys = []
    for key, value in properties.items():
        if isinstance(value, str) and (_MAC.fullmatch(value) or _UUID.fullmatch(value) or key in _TEXTS):
            found[key] = secrets.setdefault(value, _other(value, len(secrets) + 1))
            keys.append(key)
        elif key in _TEXTS and isinstance(value, int) and not isinstance(value, bool):
            found[key] = len(secrets) + 1
            keys.append(key)
        else:
            found[key] = value
    return found, keys


def _other(value: str, number: int) -> str:
    """Another text of the same form and length."""
    if _MAC.fullmatch(value):
        return _other_mac(value)
    if _UUID.fullmatch(value):
        return f"00000000-0000-4000-8000-{number:012x}"
    if value.startswith("0x"):
        return f"0x{number:0{len(value) - 2}x}"
    return f"{number:x}".rjust(len(value), "0")[-len(value) :]


def _other_mac(value: str) -> str:
    """An address of QEMU's own range; the same for the same address, whoever asks."""
    last = sum(int(part, 16) * (number + 1) for number, part in enumerate(value.split(":"))) % 256
    return f"{_OWN_MAC}{last:02x}"


def emptied_bytes(section: Section) -> bytes:
    """A section without what a guest wrote, read or typed."""
    payload = bytearray(section.payload)
    for found in _fields(section):
        if not found.children and _CONTENT.fullmatch(found.path):
            payload[found.offset : found.offset + found.size] = bytes(found.size)
    return bytes(payload)


def replaced_bytes(payload: bytes, secrets: Mapping[str, str]) -> bytes:
    """A section with other bytes where those of a secret are, in each form in which devices save them."""
    for old, new in secrets.items():
        for ours, theirs in zip(_forms(old), _forms(new), strict=True):
            if ours != theirs:
                payload = payload.replace(ours, theirs)
    return payload


def _forms(text: str) -> Iterator[bytes]:
    """Bytes that a text stands in a section as."""
    if _MAC.fullmatch(text):
        mac = bytes.fromhex(text.replace(":", ""))
        yield mac
        # e1000's receive address and EEPROM, and others': little-endian numbers that are saved big-endian
        yield mac[3::-1] + b"\x80\x00" + mac[:3:-1]
        yield bytes(mac[at ^ 1] for at in range(6))
        # ne2000's PROM
        yield bytes(byte for byte in mac for _ in range(2))
    elif _UUID.fullmatch(text):
        digits = bytes.fromhex(text.replace("-", ""))
        yield digits
        yield digits[3::-1] + digits[5:3:-1] + digits[7:5:-1] + digits[8:]
    elif len(text) >= _SHORTEST:
        plain = text.encode()
        yield plain
        # the words of an ATA disk's identity
        padded = plain + b" " * (len(plain) % 2)
        yield bytes(padded[at ^ 1] for at in range(len(padded)))


def _macs(sections: Iterable[Section]) -> Iterator[str]:
    """Addresses that virtio network cards were given, perhaps by their guest."""
    for section in sections:
        if section.idstr.endswith("virtio-net"):
            for found in _fields(section):
                if found.path.endswith(".mac") and found.size == 6 and isinstance(found.value, str):
                    digits = found.value.replace(" ", "")
                    yield ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def _fields(section: Section) -> Iterator[Field]:
    if section.desc is None:
        return
    try:
        fields = decode(section.payload, section.desc)
    except StreamError:
        return
    yield from walk(fields)


def _rings(sections: Iterable[Section]) -> Iterator[_Ring]:
    for section in sections:
        queues: dict[int, dict[str, int]] = {}
        for found in _fields(section):
            match = _QUEUE.fullmatch(found.path)
            if match and isinstance(found.value, int):
                queues.setdefault(int(match[1]), {})[match[2]] = found.value
        for queue in queues.values():
            if queue.get("num") and queue.get("desc"):
                yield _ring(queue)


def _ring(queue: Mapping[str, int]) -> _Ring:
    """Of a device of virtio 0.9 the rings follow the descriptors (``virtio_queue_update_rings``)."""
    size = queue["num"]
    available = queue.get("avail") or queue["desc"] + 16 * size
    behind = available + _RING_HEAD + _AVAILABLE_ENTRY * size
    used = queue.get("used") or -(-behind // _LEGACY_ALIGN) * _LEGACY_ALIGN
    return _Ring(available=available, used=used, taken=queue.get("last_avail_idx", 0))


def ram_offset(address: int, size: int, family: str, base: int = 0) -> int | None:
    """Where a guest address is in the main RAM block; None where it is not in it.

    :param size: of the block, in bytes
    :param family: alias of the machine type
    :param base: where RAM begins, unless it is a PC's
    """
    low = _LOW.get(family)
    if low is None:
        offset = address - base
    else:
        most, rest = low
        end = size if size < most else rest
        offset = address if address < end else address - _FOUR_GIB + end if address >= _FOUR_GIB else -1
    return offset if 0 <= offset < size else None


def _stays(block: str) -> bool:
    return is_rom(block) and not _NAMING_ROM.search(block)


def _redacted_device(device: DeviceModel, left_out: Collection[str]) -> DeviceModel:
    sections = [label for label in device.sections if label not in left_out]
    return DeviceModel(name=device.name, sections=sections, recipe=_redacted_recipe(device.recipe))


def _redacted_recipe(recipe: Device) -> Device:
    attachments = tuple(
        replace(each, properties=_redacted_properties(each.properties, {})[0]) for each in recipe.attachments
    )
    return replace(recipe, attachments=attachments)
