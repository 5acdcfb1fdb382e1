# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs as one file: read by hand what is written, write by hand what is read, and take nothing damaged for whole."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import zstandard

from harness.cache import CACHE_VARIABLE
from harness.errors import HostError, PackError, UsageError
from harness.packs import export, packfile
from harness.packs.export import export_pack
from harness.packs.pack import PackWriter, StatePack
from harness.stream.reader import read_stream

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade

MakePack = Callable[..., Path]
Member = tuple[str, bytes] | tarfile.TarInfo
HEAD_BYTES = 72


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar(*members: Member, end: bool = True) -> bytes:
    """A tar of members that are name and content, or a header of another kind."""
    out = b""
    for member in members:
        if isinstance(member, tarfile.TarInfo):
            out += member.tobuf(tarfile.GNU_FORMAT)
            continue
        info = tarfile.TarInfo(member[0])
        info.size = len(member[1])
        out += info.tobuf(tarfile.GNU_FORMAT) + member[1] + bytes(-len(member[1]) % 512)
    return out + (bytes(1024) if end else b"")


def frame(data: bytes, window_log: int = 20) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, write_checksum=True, window_log=window_log)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def head(manifest: int, content: int, *, rest: bytes = b"", name: bytes = b"POSTLOAD", layout: int = 1) -> bytes:
    digest = hashlib.sha256(rest).digest()
    return struct.pack("<II8sIIQQ", 0x184D2A5F, 64, name, layout, 0, manifest, content) + digest + rest


class Pieces(NamedTuple):
    """What a file is made of."""

    manifest: dict[str, Any]
    members: dict[str, bytes]

    def file(self, path: Path, *members: Member, content: bytes | None = None) -> Path:
        """The file: with these members in place of its own, or with other content in place of the tar."""
        first = frame(tar(("manifest.json", json.dumps(self.manifest).encode()), end=False))
        second = content if content is not None else frame(tar(*(members or self.members.items())))
        path.write_bytes(head(len(first), len(second), rest=first + second))
        return path


@pytest.fixture
def pieces(make_pack: MakePack) -> Pieces:
    """Those of a pack that was written as a folder."""
    folder = make_pack("folder", "kernel", "bound")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return Pieces(manifest, {name: (folder / name).read_bytes() for name in manifest["files"]})


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path != cache / "packs"]


def refused(path: Path, cache: Path, said: str, error: type[Exception] = PackError) -> None:
    with pytest.raises(error, match=said) as caught:
        StatePack(path)
    if error is PackError:
        assert str(path) in str(caught.value)
    assert leftovers(cache) == []


def test_a_file_is_unpacked_into_the_cache_once(tmp_path: Path, cache: Path, pieces: Pieces) -> None:
    path = pieces.file(tmp_path / "a.pack")
    with StatePack(path) as pack, StatePack(tmp_path / "folder") as folder:
        assert pack.source == path
        assert pack.path == cache / "packs" / f"imported-{hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert pack.phases == ["kernel", "bound"]
        for phase in pack.phases:
            assert list(map(bytes, pack.ram_whole(phase))) == list(map(bytes, folder.ram_whole(phase)))
    assert {name: (pack.path / name).read_bytes() for name in pieces.members} == pieces.members
    before = pack.path.stat().st_ino
    with StatePack(path) as again:
        assert again.path.stat().st_ino == before


def test_members_may_come_in_any_order(tmp_path: Path, pieces: Pieces) -> None:
    StatePack(pieces.file(tmp_path / "a.pack", *reversed(pieces.members.items()))).close()


def test_what_is_damaged_in_the_cache_is_unpacked_again(tmp_path: Path, pieces: Pieces) -> None:
    path = pieces.file(tmp_path / "a.pack")
    with StatePack(path) as pack:
        (pack.path / "bound/devices.bin").write_bytes(b"gone")
    with StatePack(path) as pack:
        assert (pack.path / "bound/devices.bin").read_bytes() == pieces.members["bound/devices.bin"]


def test_an_exported_file_read_by_hand(tmp_path: Path, make_pack: MakePack) -> None:
    folder = make_pack("pack", "kernel", "bound")
    with StatePack(folder) as pack:
        assert export_pack(pack, tmp_path / "sub/a.pack") == tmp_path / "sub/a.pack"
    data = (tmp_path / "sub/a.pack").read_bytes()
    magic, rest, name, layout, zero, first, second = struct.unpack_from("<II8sIIQQ", data)
    assert data[40:HEAD_BYTES] == hashlib.sha256(data[HEAD_BYTES:]).digest()
    assert (magic, rest, name, layout, zero) == (0x184D2A5F, 64, b"POSTLOAD", 1, 0)
    assert len(data) == HEAD_BYTES + first + second
    frames = data[HEAD_BYTES : HEAD_BYTES + first], data[HEAD_BYTES + first :]
    plain = b"".join(zstandard.ZstdDecompressor().decompressobj().decompress(part) for part in frames)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        members = {}
        for info in archive:
            assert (info.uid, info.gid, info.uname, info.gname, info.mtime, info.mode) == (0, 0, "", "", 0, 0o644)
            file = archive.extractfile(info)
            assert file is not None
            members[info.name] = file.read()
    assert next(iter(members)) == "manifest.json"
    manifest = json.loads(members.pop("manifest.json"))
    there = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    before = json.loads(there.pop("manifest.json"))
    assert members == there
    packed = manifest.pop("packed")
    assert set(packed) == {"kernel", "bound"}
    # the end of the tar belongs to nobody
    assert 0 < second - sum(packed.values()) < 64
    assert manifest == {key: value for key, value in before.items() if key != "packed"}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.pack"]


def test_equal_packs_are_equal_files(tmp_path: Path, make_pack: MakePack) -> None:
    with StatePack(make_pack("one")) as one, StatePack(make_pack("two")) as two:
        first = export_pack(one, tmp_path / "1.pack").read_bytes()
        assert export_pack(two, tmp_path / "2.pack").read_bytes() == first
    with StatePack(tmp_path / "1.pack") as pack:
        assert pack.phases == ["kernel", "bound", "busy"]
        assert all(size.packed_bytes for size in pack.sizes)
        assert export_pack(pack, tmp_path / "3.pack").read_bytes() == first


def test_a_pack_without_pages_travels(tmp_path: Path, handmade: Handmade) -> None:
    writer = PackWriter(tmp_path / "pack")
    writer.add("kernel", read_stream(handmade.stream({}, 1)), console="", seconds=0.0)
    with StatePack(writer.publish(**handmade.described)) as pack:
        export_pack(pack, tmp_path / "a.pack")
    with StatePack(tmp_path / "a.pack") as pack:
        assert pack.phases == ["kernel"]


def test_what_is_there_is_never_overwritten(tmp_path: Path, make_pack: MakePack) -> None:
    target = tmp_path / "out" / "a.pack"
    target.parent.mkdir()
    target.write_text("precious")
    with StatePack(make_pack()) as pack, pytest.raises(UsageError, match=r"a\.pack: it exists already"):
        export_pack(pack, target)
    assert target.read_text() == "precious"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_the_hosts_fault(tmp_path: Path, make_pack: MakePack) -> None:
    (tmp_path / "file").write_text("")
    with StatePack(make_pack()) as pack, pytest.raises(HostError, match="file/a"):
        export_pack(pack, tmp_path / "file/a.pack")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "nothing"),
        (b"QEVM\0\0\0\3", "51 45 56 4d"),
        (frame(b"something else"), "28 b5 2f fd"),
        (head(0, 0, name=b"POSTCARD"), "43 41 52 44"),
        (b"\x1f\x8b\x08" + bytes(60), "1f 8b 08"),
    ],
    ids=["empty", "stream", "zstd", "other-name", "gzip"],
)
def test_a_foreign_file_is_named(tmp_path: Path, cache: Path, data: bytes, found: str) -> None:
    (tmp_path / "a.pack").write_bytes(data)
    refused(tmp_path / "a.pack", cache, rf"not a state pack: at offset 0: expected 5f 2a 4d 18 .*found .*{found}")


def test_a_cut_file_is_refused_wherever_it_ends(tmp_path: Path, cache: Path, pieces: Pieces) -> None:
    whole = pieces.file(tmp_path / "a.pack").read_bytes()
    for size in {1, 15, 16, 71, HEAD_BYTES, HEAD_BYTES + 1, len(whole) // 2, len(whole) - 1}:
        (tmp_path / "a.pack").write_bytes(whole[:size])
        refused(tmp_path / "a.pack", cache, f"{size} bytes, expected")
    (tmp_path / "a.pack").write_bytes(whole + b"\0")
    refused(tmp_path / "a.pack", cache, f"{len(whole) + 1} bytes, expected {len(whole)}")


def test_no_altered_byte_is_taken(tmp_path: Path, cache: Path, pieces: Pieces) -> None:
    path = pieces.file(tmp_path / "a.pack")
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x04
        path.write_bytes(damaged)
        refused(path, cache, "a.pack")


def test_layouts_and_schemas_of_later_programs_are_named(tmp_path: Path, cache: Path, pieces: Pieces) -> None:
    path = tmp_path / "a.pack"
    path.write_bytes(head(0, 0, layout=2))
    refused(path, cache, r"at offset 16: layout 2\.0; this program reads layout 1\.0")
    pieces.manifest["schema"] = "postload.pack/6"
    refused(pieces.file(path), cache, r"manifest\.json: schema: found 'postload\.pack/6'")


def of_type(kind: bytes, name: str = "bound/head.bin") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("../evil", b"x"), r"member '\.\./evil' is not listed"),
        (("/evil", b"x"), "member '/evil' is not listed"),
        (("kernel/../../../evil", b"x"), "is not listed"),
        (("surprise", b"x"), "member 'surprise' is not listed"),
        (of_type(tarfile.SYMTYPE), "expected a plain file"),
        (of_type(tarfile.LNKTYPE), "expected a plain file"),
        (of_type(tarfile.DIRTYPE, "bound"), "expected a plain file"),
        (of_type(tarfile.FIFOTYPE), "expected a plain file"),
    ],
    ids=["above", "absolute", "winding", "unlisted", "symlink", "link", "folder", "fifo"],
)
def test_a_member_that_has_no_place_is_refused(
    tmp_path: Path, cache: Path, pieces: Pieces, more: Member, said: str
) -> None:
    refused(pieces.file(tmp_path / "a.pack", more, *pieces.members.items()), cache, said)
    refused(pieces.file(tmp_path / "a.pack", *list(pieces.members.items())[:-1], more), cache, said)
    refused(pieces.file(tmp_path / "a.pack", *pieces.members.items(), more), cache, "more members than|ends .* short")
    assert not (tmp_path / "evil").exists()
    assert not Path("/evil").exists()


def test_a_member_that_is_missing_twice_or_other_is_named(tmp_path: Path, cache: Path, pieces: Pieces) -> None:
    path, members = tmp_path / "a.pack", pieces.members
    name = "bound/devices.bin"
    rest = [item for item in members.items() if item[0] != name]
    refused(pieces.file(path, *rest), cache, f"{name}: expected the header of a member")
    refused(pieces.file(path, rest[0], rest[0]), cache, "is there twice")
    refused(pieces.file(path, (name, members[name] + b"x"), *rest), cache, f"{name}: .* expected {len(members[name])}")
    other = bytes([members[name][0] ^ 1]) + members[name][1:]
    refused(pieces.file(path, (name, other), *rest), cache, f"{name}: its SHA-256 is")
    whole = tar(*members.items())
    refused(pieces.file(path, content=frame(whole[:-1025])), cache, "short")
    refused(pieces.file(path, content=frame(whole + b"x")), cache, "expected the end")
    refused(pieces.file(path, content=b"no zstd at all"), cache, "the content.*|damaged")


def test_no_file_takes_more_than_its_manifest_says(
    tmp_path: Path, cache: Path, pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pack"
    # a manifest that gets large, one that says it is, a window that needs gigabytes, more than the disk holds
    first = frame(tar(("manifest.json", b" " * (17 << 20)), end=False))
    path.write_bytes(head(len(first), 0, rest=first))
    refused(path, cache, r"'manifest\.json' of 17825792 bytes")
    path.write_bytes(head(1 << 40, 0))
    refused(path, cache, "at offset 24: a manifest of 1099511627776 bytes")
    # FHD: no content size, a checksum; window descriptor 2^41
    huge = bytes.fromhex("28b52ffd04f8") + bytes(16)
    refused(pieces.file(path, content=huge), cache, "damaged: .*memory")
    pieces.manifest["files"]["ram.pages"]["size_bytes"] = 1 << 60
    refused(pieces.file(path), cache, "the pack needs .* bytes", HostError)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1 << 62, 0, 1 << 62))
    refused(path, cache, r"ram\.pages: 20480 bytes, expected 1152921504606846976")


def test_a_manifest_that_leads_out_of_the_pack_is_refused(tmp_path: Path, cache: Path, pieces: Pieces) -> None:
    path = tmp_path / "a.pack"
    (device,) = pieces.manifest["plan"]["devices"]
    device["properties"] = {"romfile": "/etc/shadow"}
    refused(pieces.file(path), cache, r"manifest\.json: plan: device blk: romfile='/etc/shadow': expected a word")
    device["properties"] = {}
    pieces.manifest["files"]["../evil"] = {"size_bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    pieces.members["../evil"] = b"x"
    refused(pieces.file(path), cache, r"'\.\./evil' is not the name of a file")
    first = frame(tar(("other", b"{}"), end=False))
    path.write_bytes(head(len(first), 0, rest=first))
    refused(path, cache, "a member 'other' of 2 bytes, expected manifest")


def test_a_disk_that_fills_up_is_the_hosts_fault(
    tmp_path: Path, cache: Path, pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = pieces.file(tmp_path / "a.pack")
    monkeypatch.setattr(packfile, "_unpack_one", full)
    refused(path, cache, "is full", HostError)
    with StatePack(tmp_path / "folder") as pack:
        monkeypatch.setattr(export, "_join", full)
        with pytest.raises(HostError, match=r"b\.pack: No space left"):
            export_pack(pack, tmp_path / "new/b.pack")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_guests_files_travel_and_cost_what_they_cost(tmp_path: Path, handmade: Handmade) -> None:
    (tmp_path / "bzImage").write_bytes(b"a kernel")
    writer = PackWriter(tmp_path / "folder-with-guest")
    pages, mark = handmade.phases["kernel"]
    writer.add("kernel", read_stream(handmade.stream(pages, mark)), console="", seconds=0.0)
    writer.add_file("guest/kernel", tmp_path / "bzImage")
    with StatePack(writer.publish(**handmade.described)) as pack:
        export_pack(pack, tmp_path / "a.pack")
    with StatePack(tmp_path / "a.pack") as pack:
        assert (pack.path / "guest/kernel").read_bytes() == b"a kernel"
        assert set(pack.manifest.packed) == {"guest", "kernel"}
