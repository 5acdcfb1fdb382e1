# SPDX-License-Identifier: GPL-2.0-or-later
"""From differing bytes to the bit of a register, and its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.devices.recipe import load_recipes
from harness.devices.saved import Register, Registers
from harness.packs.manifest import read_manifest
from harness.report.cases import phrase
from harness.stream.fields import Field
from harness.triage.fields import Atom, apply, differences, needed, split_bits, split_bytes, whole_numbers
from harness.triage.registers import load_registers, register_of, registers_of

LPC = "0000:00:1f.0/ICH9LPC"
CONFIG_AT = 4


def known_of(device: str) -> tuple[Registers, ...]:
    return (*load_recipes().devices[device].registers, *load_registers())


def config_fields(more: tuple[Field, ...] = ()) -> list[Field]:
    return [
        Field(name="version_id", path="d.version_id", offset=0, size=4, type="int32 le", value=2),
        Field(name="config", path="d.config[0]", offset=CONFIG_AT, size=256, type="pci config", value="00"),
        *more,
    ]


def lpc(rcba: bytes, command: int = 0) -> bytes:
    config = bytearray(256)
    config[4] = command
    config[0xF0:0xF4] = rcba
    return b"\0\0\0\2" + bytes(config)


def atoms_of(failing: bytes, healthy: bytes) -> list[Atom]:
    return differences(LPC, failing, config_fields(), healthy, config_fields())


def test_the_bit_of_a_register_is_found_and_named() -> None:
    failing, healthy = lpc(b"\x01\xc0\xd1\xfe", command=3), lpc(bytes(4))
    (field,) = atoms_of(failing, healthy)
    assert (field.path, field.offset, field.size) == ("d.config[0]", 4, 256)
    pieces = split_bytes(field, failing)
    assert [piece.offset - CONFIG_AT for piece in pieces] == [4, 0xF0, 0xF1, 0xF2, 0xF3]
    (bit,) = split_bits(pieces[1], failing)
    named = register_of(bit, failing, known_of("platform"))
    assert named is not None
    assert named.title == "RCBA enabled"
    assert phrase(bit, failing, named) == "RCBA enabled (rcba bit 0 = 1)"
    found = needed(bit, failing, named.title)
    assert (found.offset, found.bit, found.value, found.healthy) == (CONFIG_AT + 0xF0, 0, 1, 0)
    assert apply(failing, [*pieces[:1], *pieces[2:], bit]) == healthy


def test_bits_of_what_every_pci_device_has() -> None:
    failing = lpc(bytes(4), command=6)
    (field,) = atoms_of(failing, lpc(bytes(4)))
    bits = split_bits(split_bytes(field, failing)[0], failing)
    assert [phrase(bit, failing, register_of(bit, failing, load_registers())) for bit in bits] == [
        "PCI command memory space (pci command bit 1 = 1)",
        "PCI command bus master (pci command bit 2 = 1)",
    ]


def test_a_register_behind_a_capability() -> None:
    config = bytearray(256)
    config[0x34] = 0x40
    config[0x40:0x44] = bytes([0x09, 0x50, 0, 0])
    config[0x50:0x54] = bytes([0x11, 0, 0, 0x80])
    failing = b"\0\0\0\2" + bytes(config)
    config[0x53] = 0
    label = "0000:00:04.0/other"
    (field,) = differences(label, failing, config_fields(), b"\0\0\0\2" + bytes(config), config_fields())
    (bit,) = split_bits(split_bytes(field, failing)[0], failing)
    named = register_of(bit, failing, load_registers())
    assert phrase(bit, failing, named) == "MSI-X control enabled (msi-x control bit 15 = 1)"


def test_bits_of_a_number_count_from_its_least_byte() -> None:
    def fields(value: int) -> list[Field]:
        return [Field(name="cmd", path="ahci.dev[2].port_regs.cmd", offset=3, size=4, type="uint32", value=value)]

    failing, healthy = b"xyz\x00\x00\x40\x01", b"xyz\x00\x00\x00\x01"
    (field,) = differences("0000:00:03.0/ich9_ahci", failing, fields(0x4001), healthy, fields(1))
    assert split_bytes(field, failing) == [field]
    (bit,) = split_bits(field, failing)
    assert (bit.offset, bit.mask) == (5, b"\x40")
    known = known_of("ahci")
    assert phrase(bit, failing, register_of(bit, failing, known)) == "PxCMD FIS receive running (pxcmd bit 14 = 1)"
    unnamed = Atom(section="x", path="a.count", field_offset=3, kind="uint32", offset=5, mask=b"\x40", healthy=b"\0")
    assert phrase(unnamed, failing, register_of(unnamed, failing, known)) == "a.count bit 14 = 1"


def test_an_address_stays_whole() -> None:
    payload = b"\x06\x54\x0c\x00"
    number = Atom(section="x", path="n", field_offset=0, kind="uint32", offset=0, mask=b"\xff" * 4, healthy=bytes(4))
    assert split_bits(number, payload) == [number]
    assert len(split_bits(number, b"\0\0\1\7")) == 4


def test_whole_numbers_and_buffers_have_words_too() -> None:
    payload = b"\x00\x00\x01\x00" + b"abcdefghijkl"
    number = Atom(section="x", path="n", field_offset=0, kind="uint32", offset=0, mask=b"\xff" * 4, healthy=bytes(4))
    assert phrase(number, payload, None) == "n = 0x100"
    assert needed(number, payload, None).value == 256
    byte = Atom(section="x", path="buf", field_offset=4, kind="buffer", offset=6, mask=b"\xff", healthy=b"\0")
    assert phrase(byte, payload, None) == "buf byte 0x2 = 0x63"
    timer = Atom(section="x", path="t", field_offset=0, kind="timer", offset=0, mask=b"\xff" * 8, healthy=bytes(8))
    assert split_bits(timer, payload) == [timer]


def test_a_subsection_that_only_the_failing_state_has_is_cut() -> None:
    inner = Field(name="x", path="dev/extra/x", offset=270, size=2, type="uint16", value=7)
    extra = Field(
        name="dev/extra", path="dev/extra", offset=260, size=12, type="subsection", value=None, children=(inner,)
    )
    failing, healthy = lpc(b"\1\0\0\0") + b"subsection!!", lpc(bytes(4))
    atoms = differences(LPC, failing, config_fields((extra,)), healthy, config_fields())
    assert [atom.path for atom in atoms] == ["d.config[0]", "dev/extra"]
    assert apply(failing, atoms) == healthy
    assert apply(failing, atoms[1:]) == lpc(b"\1\0\0\0")
    assert phrase(atoms[1], failing, None) == "subsection dev/extra"
    assert needed(atoms[1], failing, None).healthy is None


def test_fields_of_one_path_are_compared_in_their_order() -> None:
    fields = [Field(name="x", path="dev.x", offset=n, size=1, type="uint8", value=0) for n in range(3)]
    assert differences("s", b"\1\2\3", fields, b"\1\2\3", fields) == []
    assert [atom.offset for atom in differences("s", b"\1\2\3", fields, b"\1\0\3", fields)] == [1]


def test_equal_states_have_no_differences() -> None:
    assert atoms_of(lpc(b"\1\0\0\0"), lpc(b"\1\0\0\0")) == []


def test_the_shipped_names_can_be_read() -> None:
    known = [group for device in load_recipes().devices.values() for group in device.registers] + [*load_registers()]
    assert all(group.source for group in known)
    assert any(register.name == "PMREGMISC" for group in known for register in group.registers)


def test_a_section_has_the_names_of_the_device_that_owns_it(make_pack: Callable[..., Path]) -> None:
    own = Registers(fields=("x",), source="a book", registers=(Register(name="OWN"),))
    made = read_manifest(make_pack())
    ahci, *others = made.devices
    named = ahci.model_copy(update={"recipe": replace(ahci.recipe, registers=(own,))})
    manifest = made.model_copy(update={"devices": [named, *others]})
    assert registers_of(manifest, ahci.sections[0]) == (own, *load_registers())
    assert registers_of(manifest, others[0].sections[0]) == load_registers()
    assert registers_of(manifest, "of nobody") == load_registers()


def number(path: str, failing: int, healthy: int, at: int = 8) -> tuple[Atom, bytes]:
    """A number of eight bytes, and the payload that it stands in."""
    payload = bytes(at) + failing.to_bytes(8, "big")
    atom = Atom(
        section="x",
        path=path,
        field_offset=at,
        kind="uint64",
        offset=at,
        mask=b"\xff" * 8,
        healthy=healthy.to_bytes(8, "big"),
    )
    return atom, payload


@pytest.mark.parametrize(
    "path", ["crcr_low", "dcbaap_high", "intr[0].erstba_low", "ring.dequeue", "tx_desc", "rx.head"]
)
def test_half_an_address_is_never_cut_into_bits(path: str) -> None:
    atom, payload = number(path, 0x7F3000, 0x7F2000)
    assert split_bits(atom, payload) == [atom]


def test_a_number_of_which_two_bits_are_needed_is_named_as_a_whole() -> None:
    atom, payload = number("base_of_it", 0x11, 0)
    bits = split_bits(atom, payload)
    assert len(bits) == 2
    assert whole_numbers(bits, [atom]) == (atom,)
    assert whole_numbers(bits[:1], [atom]) == (bits[0],)


def test_two_bits_of_a_config_space_stay_two() -> None:
    failing = lpc(bytes(4), command=6)
    (field,) = atoms_of(failing, lpc(bytes(4)))
    bits = split_bits(split_bytes(field, failing)[0], failing)
    assert whole_numbers(bits, [field]) == tuple(bits)


def test_the_byte_of_a_register_counts_from_the_start_of_its_field() -> None:
    failing = lpc(b"\x01\xc0\xd1\xfe")
    (field,) = atoms_of(failing, lpc(bytes(4)))
    (bit,) = split_bits(split_bytes(field, failing)[0], failing)
    found = needed(bit, failing, "RCBA enabled")
    assert (found.offset, found.byte) == (0xF4, 0xF0)


def test_the_config_space_of_a_pcie_device_has_the_same_registers() -> None:
    bit = Atom(
        section="x/xhci",
        path="parent_obj[0].config[1]",
        field_offset=4,
        kind="pci config",
        offset=8,
        mask=b"\x04",
        healthy=b"\0",
    )
    named = register_of(bit, b"\0\0\0\2" + bytes(4) + b"\x04" + bytes(4091), load_registers())
    assert named is not None
    assert named.title == "PCI command bus master"
