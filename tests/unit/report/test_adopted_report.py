# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of an adopted VM, in words."""

from __future__ import annotations

import io

from rich.console import Console

from harness.guests.origin import LeftOut, Replaced, VmOrigin, VmPart, Without, label
from harness.report.adopted import adopted_document, left_out_text, origin_lines, print_adopted, replaced_text


def test_every_part_and_every_reason_has_words() -> None:
    assert len({replaced_text(Replaced(part=part, was="a", stands="b")) for part in VmPart}) == len(VmPart)
    assert len({left_out_text(LeftOut(why=why, type="t", names=("n",))) for why in Without}) == len(Without)


def test_an_origin_is_told_line_by_line() -> None:
    origin = VmOrigin(
        name="web01",
        replaced=(
            Replaced(
                part=VmPart.DISK, id="vda", was="qcow2 on file", stands="scratch disk", size_bytes=1024, guessed=True
            ),
            Replaced(part=VmPart.CPU, was="host", stands="max"),
        ),
        left_out=(
            LeftOut(why=Without.UNKNOWN, id="n", type="virtio-net-pci", names=("a", "b")),
            LeftOut(why=Without.MIGRATION, id="s", type="usb-uas", said="State blocked"),
        ),
    )
    assert origin_lines(origin) == [
        "adopted of VM web01: the state of a guest of postload's in its place",
        "replaced: disk vda: qcow2 on file -> scratch disk of 1,024 bytes, for nobody said how large it was",
        "replaced: CPU model: host -> max",
        "left out: virtio-net-pci (n): there without a, b: this QEMU has no such property",
        "left out: usb-uas (s): not judged: it keeps this QEMU from migrating: State blocked",
    ]
    assert origin_lines(VmOrigin(state=True)) == ["adopted: its own saved state"]


def test_a_vm_that_nothing_was_recorded_of_is_shown_without_markup_and_controls() -> None:
    out = io.StringIO()
    document = adopted_document(
        VmOrigin(name="[red]x"), "pc-q35-7.2", "7.2.22", {"virtio-blk": ["vda"], "platform": []}
    )
    print_adopted(document, Console(file=out, width=60))
    assert out.getvalue().splitlines() == [
        "machine: pc-q35-7.2 on QEMU 7.2.22",
        "2 devices to judge:",
        "  virtio-blk: vda",
        "  platform: part of the machine",
        "adopted of VM [red]x: the state of a guest of postload's in",
        "  its place",
        "next: with --out NAME.pack too, a guest of postload's is",
        "  booted in it and recorded",
    ]
    assert label("a\x1b[31m\nb" + "c" * 100) == "a?[31m?b" + "c" * 72


def test_what_stands_for_a_network_is_told_from_what_was_there() -> None:
    for was in ("user", "tap"):
        told = replaced_text(Replaced(part=VmPart.NETWORK, id="nic", was=was, stands="user"))
        assert told == f"network nic: {was} -> QEMU's own, which reaches nobody"
