# SPDX-License-Identifier: GPL-2.0-or-later
"""State packs: what comes out is what the streams held, and nothing that was damaged is taken for whole."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.cache import CACHE_VARIABLE, cache_root, prunable
from harness.devices.backends import Disk
from harness.devices.device import GuestCommands
from harness.devices.saved import Comparison, Register, Registers, Rule
from harness.errors import HostError, PackError
from harness.experiments.interview import recorded_devices
from harness.packs.manifest import read_manifest
from harness.packs.pack import PackWriter, StatePack, incoming_body
from harness.stream.model import RamBlock
from harness.stream.ram import encode_mem_size, encode_ram_section, ram_section_buffers
from harness.stream.reader import read_stream

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade

MakePack = Callable[..., Path]
Ram = dict[tuple[str, int], bytes]

FILES = (
    "ram.pages",
    *(
        f"{phase}/{name}"
        for phase in ("kernel", "bound")
        for name in ("ram.index", "head.bin", "setup.bin", "devices.bin", "vmdesc.json", "console.log")
    ),
)


def take_end(data: bytes, ram: Ram) -> int:
    """Apply one END section to RAM, read by hand; returns how many page records it held."""
    assert data[:5] == b"\x03\x00\x00\x00\x02"
    at, count, block = 5, 0, ""
    while True:
        (word,) = struct.unpack_from(">Q", data, at)
        at += 8
        flags, address = word & 0xFFF, word & ~0xFFF
        if flags == 0x10:
            break
        if not flags & 0x20:
            size = data[at]
            block = data[at + 1 : at + 1 + size].decode()
            at += 1 + size
        count += 1
        if flags & 0x02:
            assert data[at] == 0
            ram[block, address // 4096] = bytes(4096)
            at += 1
        else:
            assert flags & ~0x20 == 0x08
            ram[block, address // 4096] = data[at : at + 4096]
            at += 4096
    assert data[at:] == b"\x7e\x00\x00\x00\x02"
    return count


def stream_of_blocks(
    handmade: Handmade, blocks: Sequence[tuple[str, int]], pages: Mapping[tuple[str, int], bytes]
) -> bytes:
    """A stream of a machine with other blocks."""
    listed = [RamBlock(name=name, size_bytes=count * 4096) for name, count in blocks]
    every = [(name, n * 4096, pages.get((name, n))) for name, count in blocks for n in range(count)]
    ram = encode_ram_section(1, 2, encode_mem_size(listed)) + joined(ram_section_buffers(3, 2, every))
    vmdesc = struct.pack(">BI", 6, len(handmade.vmdesc)) + handmade.vmdesc
    return handmade.head + ram + handmade.devices(1) + b"\0" + vmdesc


def joined(buffers: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


@pytest.mark.parametrize("phase", ["kernel", "bound", "busy"])
def test_whole_ram_is_the_setup_and_every_page(make_pack: MakePack, handmade: Handmade, phase: str) -> None:
    with StatePack(make_pack()) as pack:
        data = joined(pack.ram_whole(phase))
        assert data.startswith(handmade.ram_start())
        ram: Ram = {}
        assert take_end(data[len(handmade.ram_start()) :], ram) == 5
        assert ram == handmade.ram(phase)


@pytest.mark.parametrize(
    ("machine", "memory_mib", "booted", "left_out"),
    [
        ("pc-i440fx-7.2", 1, True, True),
        ("pc-i440fx-4.1", 1, True, True),
        ("pc-i440fx-4.0", 1, True, False),  # QEMU 4.0 puts the kernel into memory before the stream comes
        ("pc-i440fx-7.2", 1, False, False),  # somebody's own VM
        ("pc-i440fx-7.2", 2, True, False),  # no block is the guest's memory
    ],
)
def test_zeros_are_left_out_of_memory_that_is_zeros_when_qemu_starts(
    tmp_path: Path, handmade: Handmade, machine: str, memory_mib: int, booted: bool, left_out: bool
) -> None:
    memory, ram = 256, {("pc.ram", 1): handmade.page(1), ("pc.ram", 200): handmade.page(2)}
    writer = PackWriter(tmp_path / "pack")
    blocks = (("pc.ram", memory), ("vga.rom", 2))
    writer.add("bound", read_stream(stream_of_blocks(handmade, blocks, ram)), console="", seconds=0.0)
    if booted:
        (tmp_path / "vmlinux").write_bytes(b"a kernel")
        writer.add_file("guest/kernel", tmp_path / "vmlinux")
    digest = hashlib.sha256(b"a kernel").hexdigest() if booted else None
    plan = handmade.described["plan"].model_copy(
        update={"machine": machine, "memory_mib": memory_mib, "kernel": digest}
    )
    with StatePack(writer.publish(**handmade.described | {"plan": plan})) as pack:
        setup = pack.recordings["bound"].setup
        sent: Ram = {}
        take_end(joined(pack.ram_whole("bound"))[len(setup) :], sent)
    rom = {("vga.rom", 0): bytes(4096), ("vga.rom", 1): bytes(4096)}
    zeros = {} if left_out else {("pc.ram", number): bytes(4096) for number in range(memory)}
    assert sent == {**zeros, **rom, **ram}


@pytest.mark.parametrize("base", ["kernel", "bound", "busy"])
@pytest.mark.parametrize("phase", ["kernel", "bound", "busy"])
def test_a_difference_turns_one_ram_into_the_other(
    make_pack: MakePack, handmade: Handmade, phase: str, base: str
) -> None:
    ram, wanted = handmade.ram(base), handmade.ram(phase)
    different = sum(ram[where] != wanted[where] for where in ram)
    with StatePack(make_pack()) as pack:
        buffers = pack.ram_difference(phase, base)
        if different:
            assert take_end(joined(buffers), ram) == different
        else:
            assert buffers == []
    assert ram == wanted


def test_each_content_is_kept_once(tmp_path: Path, make_pack: MakePack, handmade: Handmade) -> None:
    # kernel has three pages that are not zero, bound has two new ones, busy none
    assert (make_pack() / "ram.pages").stat().st_size == 5 * 4096
    one, two = handmade.page(1), handmade.page(2)
    writer = PackWriter(tmp_path / "moved")
    for name, pages in {
        "kernel": {("pc.ram", 0): one, ("pc.ram", 1): one, ("vga.rom", 0): one},
        "bound": {("pc.ram", 2): two},
        "busy": {("pc.ram", 3): one, ("pc.ram", 0): two},
    }.items():
        writer.add(name, read_stream(handmade.stream(pages, 1)), console="", seconds=0.0)
    with StatePack(writer.publish(**handmade.described)) as pack:
        assert (pack.path / "ram.pages").read_bytes() == one + two
        index = (pack.path / "busy/ram.index").read_bytes()
        assert struct.unpack("<5I", index) == (2, 0, 0, 1, 0)
        assert [size.page_bytes for size in pack.sizes] == [4096, 4096, 0]
        assert [size.packed_bytes for size in pack.sizes] == [None] * 3


def test_roms_are_named_with_what_they_held_in_the_first_phase(make_pack: MakePack, handmade: Handmade) -> None:
    # of pc.ram and vga.rom; bound writes to the ROM's block
    with StatePack(make_pack()) as pack:
        roms = {name: rom.model_dump() for name, rom in pack.manifest.roms.items()}
        assert roms == {"vga.rom": {"size_bytes": 4096, "sha256": hashlib.sha256(bytes(4096)).hexdigest()}}
    with StatePack(make_pack("late", "bound", "kernel")) as pack:
        assert pack.manifest.roms["vga.rom"].sha256 == hashlib.sha256(handmade.page(5)).hexdigest()


def test_the_guests_files_are_in_the_pack_and_found_there(
    tmp_path: Path, handmade: Handmade, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bzImage").write_bytes(b"a kernel")
    writer = writer_with_a_phase(tmp_path / "pack", handmade)
    writer.add_file("guest/kernel", tmp_path / "bzImage")
    digest = hashlib.sha256(b"a kernel").hexdigest()
    plan = handmade.described["plan"].model_copy(update={"kernel": digest})
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with StatePack(writer.publish(**{**handmade.described, "plan": plan})) as pack:
        kernel = tmp_path / "pack/guest/kernel"
        kernel.rename(tmp_path / "was")
        kernel.write_bytes(b"another")
        with pytest.raises(PackError, match="guest/kernel: its SHA-256 is not"):
            pack.machine  # noqa: B018
        (tmp_path / "was").rename(kernel)
        # QEMU reads it where nobody else can change it
        (option,) = [o for o in pack.machine.options if o.name == "kernel"]
        assert option.first == str(tmp_path / f"cache/imported/{digest[:32]}/guest/kernel")
        assert Path(option.first).read_bytes() == b"a kernel"
    kernel.unlink()
    with pytest.raises(PackError, match="guest/kernel: No such file"):
        StatePack(tmp_path / "pack")


def test_a_guests_file_that_is_not_there_is_the_hosts_fault(tmp_path: Path, handmade: Handmade) -> None:
    writer = writer_with_a_phase(tmp_path / "pack", handmade)
    with pytest.raises(HostError, match="nowhere"):
        writer.add_file("guest/kernel", tmp_path / "nowhere")
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_pack_without_any_page_opens(tmp_path: Path, handmade: Handmade) -> None:
    writer = PackWriter(tmp_path / "pack")
    writer.add("kernel", read_stream(handmade.stream({}, 1)), console="", seconds=0.0)
    with StatePack(writer.publish(**handmade.described)) as pack:
        ram: Ram = {}
        take_end(joined(pack.ram_whole("kernel"))[len(handmade.ram_start()) :], ram)
    assert set(ram.values()) == {bytes(4096)}


def test_a_recording_holds_the_rest_of_the_stream(make_pack: MakePack, handmade: Handmade) -> None:
    with StatePack(make_pack("pack", "kernel", "bound")) as pack:
        assert pack.phases == ["kernel", "bound"]
        recording = pack.recordings["bound"]
        assert recording.head == handmade.head
        assert recording.console == "bound console\n"
        assert [s.payload for s in recording.sections] == [handmade.payload(n, 0x22) for n in range(6)]
        assert b"".join(s.encode() for s in recording.sections) == handmade.devices(0x22)
        body = joined(incoming_body(recording, pack.ram_whole("bound"), handmade.devices(0x22)))
        tail = handmade.devices(0x22) + b"\0\x06" + struct.pack(">I", len(handmade.vmdesc)) + handmade.vmdesc
        assert body.endswith(tail)
        # a stream again, as far as the reader is concerned
        assert len(read_stream(recording.head + body).devices) == 6


def test_the_machine_and_the_owners_come_back(make_pack: MakePack, handmade: Handmade) -> None:
    with StatePack(make_pack()) as pack:
        machine = pack.machine
        assert (machine.name, machine.family, machine.accel) == ("pc-i440fx-7.2", "pc", "tcg")
        assert [o.argv() for o in machine.options] == [
            ["-m", "16"],
            ["-smp", "1"],
            ["-blockdev", "file,node-name=a-file,filename={workdir}/a.img"],
            ["-blockdev", "raw,node-name=a,file=a-file"],
            ["-device", "virtio-blk-pci,id=blk,addr=04.0,drive=a"],
        ]
        assert machine.files == (("a.img", 1 << 20),)
        assert pack.sections_of("ahci") == [handmade.ahci]
        with pytest.raises(PackError, match="recorded without device 'nvme'"):
            pack.sections_of("nvme")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_changed_or_missing_is_named(make_pack: MakePack, name: str) -> None:
    path = make_pack("pack", "kernel", "bound")
    file = path / name
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for damage in (whole[:-1], whole + b"\0", bytes(changed), None):
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        with pytest.raises(PackError) as caught:
            StatePack(path)
        assert str(file) in str(caught.value)
        file.write_bytes(whole)
    StatePack(path).close()


def test_a_folder_in_place_of_a_file_is_named(make_pack: MakePack) -> None:
    path = make_pack("pack", "kernel")
    file = path / "kernel/head.bin"
    file.unlink()
    file.mkdir()
    with pytest.raises(PackError, match=r"head\.bin"):
        StatePack(path)


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda m: m.update(schema="postload.pack/6"),
            r"found 'postload\.pack/6'; this program reads postload\.pack/4 and postload\.pack/5",
        ),
        (lambda m: m.update(schema="postload.pack/3"), r"an older program made it .*pack/3.*: record it anew"),
        (lambda m: m.update(schema="postload.pack/1"), "an older program made it"),
        (lambda m: m.update(schema=2), "schema: found 2"),
        (lambda m: m.pop("schema"), "schema: found None"),
        (lambda m: m.pop("plan"), "plan"),
        (lambda m: m["devices"][0].update(name="other"), "the recipe of 'other' is one of 'ahci'"),
        (lambda m: m["devices"][0]["recipe"].update(kernel_names=["("]), r"kernel_names\.0: '\('"),
        (lambda m: m["devices"][0]["recipe"].update(kernel_names=["(a+)+b"]), r"kernel_names\.0: .* expected letters"),
        (lambda m: m.update(host={"cpu": {"flags": "avx"}}), r"host\.cpu\.flags"),
        (lambda m: m.update(host={"kvm": {"cpuid": {"0x1.0.ecx": "many"}}}), r"host\.kvm\.cpuid\.0x1\.0\.ecx"),
        (lambda m: m.update(host={"qemu": [{"virtio": [{"device": "virtio-net"}]}]}), r"host\.qemu\.0\.virtio\.0\."),
        (lambda m: m["guest"].update(drivers=["ahci"]), r"guest\.drivers"),
        (lambda m: m["plan"].pop("machine"), r"plan\.machine"),
        (lambda m: m["plan"].update(surprise=1), r"plan\.surprise"),
        (lambda m: m["plan"]["backends"]["a"].update(filename="/etc/shadow"), r"plan\.backends\.a\.disk\.filename"),
        (lambda m: m["plan"]["devices"][0].update(id="a,b=c"), r"plan\.devices\.0\.id"),
        (lambda m: m["phases"][0].pop("ram_section_id"), r"phases\.0\.ram_section_id"),
        (lambda m: m["blocks"][0].update(size_bytes=-1), r"blocks\.0\.size_bytes"),
        (lambda m: m["files"]["ram.pages"].update(sha256="beef"), r"files\.ram\.pages\.sha256"),
        (lambda m: m["files"].update({"../x": {"size_bytes": 0, "sha256": "0" * 64}}), r"'\.\./x' is not the name"),
        (lambda m: m["files"].update({"/x": {"size_bytes": 0, "sha256": "0" * 64}}), "'/x' is not the name"),
        (lambda m: m["phases"][0].update(name="../kernel"), r"'\.\./kernel' is not the name"),
        (lambda m: m["plan"].update(kernel="0" * 64), "guest/kernel is not the one of the plan"),
        (lambda m: m.update(phases=[]), "phases"),
        (lambda m: m.update(blocks="pc.ram"), "blocks"),
        (lambda m: m["files"].pop("ram.pages"), r"ram\.pages is not listed"),
        (lambda m: m["files"].pop("kernel/vmdesc.json"), r"kernel/vmdesc\.json is not listed"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    make_pack: MakePack, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = edited(make_pack("pack", "kernel"), change)
    with pytest.raises(PackError, match=rf"manifest\.json: .*{said}"):
        StatePack(path)


def test_keys_of_a_later_program_are_left_alone_and_kept(make_pack: MakePack) -> None:
    def later(manifest: dict[str, Any]) -> None:
        manifest["surprise"] = {"a": 1}
        manifest["phases"][0]["surprise"] = 2

    with StatePack(edited(make_pack("pack", "kernel"), later)) as pack:
        document = json.loads(pack.manifest.text())
        assert (document["surprise"], document["phases"][0]["surprise"]) == ({"a": 1}, 2)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"{} {}"])
def test_a_manifest_that_is_no_json_object_is_refused(make_pack: MakePack, text: bytes) -> None:
    path = make_pack("pack", "kernel")
    (path / "manifest.json").write_bytes(text)
    with pytest.raises(PackError, match=r"manifest\.json"):
        StatePack(path)


@pytest.mark.parametrize("where", ["nowhere", "empty", "file"])
def test_what_is_no_pack_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no pack")
    with pytest.raises(PackError, match=f"{where} is not a state pack"):
        StatePack(tmp_path / where)


def relisted(path: Path, name: str, data: bytes) -> Path:
    """A file with other content, and a manifest that agrees with it."""
    (path / name).write_bytes(data)
    entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return edited(path, lambda m: m["files"].update({name: entry}))


@pytest.mark.parametrize(
    "data",
    [b"", struct.pack("<4I", 1, 2, 0, 3), struct.pack("<6I", *range(6)), struct.pack("<5I", 1, 2, 0, 4, 0), b"abc"],
    ids=["empty", "short", "long", "page-beyond-end", "odd"],
)
def test_an_index_that_does_not_fit_the_pages_is_refused(make_pack: MakePack, data: bytes) -> None:
    path = relisted(make_pack("pack", "kernel"), "kernel/ram.index", data)
    with pytest.raises(PackError, match=r"kernel/ram\.index"):
        StatePack(path)


@pytest.mark.parametrize("name", ["devices.bin", "vmdesc.json"])
def test_sections_that_their_description_does_not_fit_are_refused(make_pack: MakePack, name: str) -> None:
    path = make_pack("pack", "kernel")
    relisted(path, f"kernel/{name}", (path / "kernel" / name).read_bytes()[:-3])
    with pytest.raises(PackError, match="kernel"):
        StatePack(path)


def writer_with_a_phase(path: Path, handmade: Handmade) -> PackWriter:
    writer = PackWriter(path)
    pages, mark = handmade.phases["kernel"]
    writer.add("kernel", read_stream(handmade.stream(pages, mark)), console="", seconds=0.0)
    return writer


def test_a_pack_appears_whole_or_not_at_all(tmp_path: Path, handmade: Handmade) -> None:
    writer = writer_with_a_phase(tmp_path / "pack", handmade)
    assert not (tmp_path / "pack").exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    writer.publish(**handmade.described)
    writer.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_discard_removes_the_unfinished_folder(tmp_path: Path, handmade: Handmade) -> None:
    writer = writer_with_a_phase(tmp_path / "pack", handmade)
    writer.discard()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_recorders_keeps_the_first_ones_pack(tmp_path: Path, handmade: Handmade) -> None:
    first, second = (writer_with_a_phase(tmp_path / "pack", handmade) for _ in range(2))
    first.publish(**{**handmade.described, "created": "first"})
    assert second.publish(**{**handmade.described, "created": "second"}) == tmp_path / "pack"
    first.discard()
    second.discard()
    with StatePack(tmp_path / "pack") as pack:
        assert pack.manifest.created == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_folder_that_is_no_pack_is_not_touched(tmp_path: Path, handmade: Handmade) -> None:
    writer = writer_with_a_phase(tmp_path / "pack", handmade)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/precious").write_text("mine")
    with pytest.raises(HostError, match="pack"):
        writer.publish(**handmade.described)
    writer.discard()
    assert [path.name for path in tmp_path.rglob("*")] == ["pack", "precious"]


def test_a_full_disk_is_the_hosts_fault_and_leaves_nothing(tmp_path: Path, handmade: Handmade) -> None:
    writer = PackWriter(tmp_path / "pack")
    writer._pages.close()
    writer._pages = Path("/dev/full").open("w+b")  # noqa: SIM115 - the writer closes it
    # more pages than the file object keeps back
    pages = {("pc.ram", n): handmade.page(n + 1) for n in range(4)}
    with pytest.raises(HostError, match=r"ram\.pages: No space left"):
        writer.add("kernel", read_stream(handmade.stream(pages, 1)), console="", seconds=0.0)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_last_flush_is_the_hosts_fault(tmp_path: Path, handmade: Handmade) -> None:
    writer = writer_with_a_phase(tmp_path / "pack", handmade)
    writer._pages.close()
    writer._pages = Path("/dev/full").open("w+b")  # noqa: SIM115 - the writer closes it
    writer._pages.write(b"x")
    with pytest.raises(HostError, match="No space left"):
        writer.publish(**handmade.described)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_the_hosts_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="file"):
        PackWriter(tmp_path / "file" / "pack")


def test_phases_of_two_guests_do_not_go_into_one_pack(tmp_path: Path, handmade: Handmade) -> None:
    writer = writer_with_a_phase(tmp_path / "pack", handmade)
    other = handmade.stream({}, 1).replace(b"vga.rom", b"vga.mor")
    with pytest.raises(PackError, match="phase bound: the RAM blocks changed"):
        writer.add("bound", read_stream(other), console="", seconds=0.0)
    writer.discard()


def test_a_description_that_was_handed_in_will_do(tmp_path: Path, handmade: Handmade) -> None:
    whole = read_stream(handmade.stream({}, 1))
    bare = handmade.head + handmade.ram_start() + handmade.ram_end({}) + handmade.devices(1) + b"\0"
    writer = PackWriter(tmp_path / "pack")
    without = read_stream(bare, vmdesc=whole.vmdesc)
    assert not without.own_vmdesc
    writer.add("kernel", without, console="", seconds=0.0)
    with StatePack(writer.publish(**handmade.described)) as pack:
        assert len(pack.recordings["kernel"].sections) == 6


def test_a_pack_knows_its_devices(make_pack: MakePack) -> None:
    """Their commands, failing sectors and names: a replay needs no recipe that lies on the host that recorded."""
    path = make_pack()
    manifest = read_manifest(path)
    lines = GuestCommands(life="disk_life sda", fail="disk_fail sda 9")
    rule = Rule(fields=("count",), compare=(Comparison.N,), reason="toy_tick (hw/toy.c) counts it")
    names = Registers(fields=("config",), source="a book", registers=(Register(name="CTRL", bits={"0": "enabled"}),))
    ahci = replace(
        manifest.devices[0].recipe,
        faults={"disk": 9},
        takes=frozenset({"sda"}),
        backends={"disk": Disk(size_bytes=4096)},
        guest=lines,
        decoder="virtio",
        drift=(rule,),
        registers=(names,),
    )
    device = manifest.devices[0].model_copy(update={"recipe": ahci})
    text = manifest.model_copy(update={"devices": [device, *manifest.devices[1:]]}).text()
    (path / "manifest.json").write_text(text)
    with StatePack(path) as pack:
        assert recorded_devices(pack, None)[0] == ahci
        decoders = {s.idstr: s.desc.decoder for s in pack.recordings["bound"].sections if s.desc}
        assert [name for name, decoder in decoders.items() if decoder] == pack.sections_of("ahci")
        # a recipe that is given counts more than the pack's own; one of a device that is not in it does not
        given = replace(ahci, about="another")
        assert recorded_devices(pack, [given, replace(ahci, name="stranger")])[:2] == (
            given,
            manifest.devices[1].recipe,
        )


def test_an_open_pack_of_the_cache_is_in_use(make_pack: MakePack, own_cache: Path) -> None:
    path = cache_root() / "packs" / "mine"
    path.parent.mkdir(parents=True)
    make_pack().rename(path)
    with StatePack(path):
        assert [each.in_use for each in prunable()] == [True]
    assert [each.in_use for each in prunable()] == [False]
