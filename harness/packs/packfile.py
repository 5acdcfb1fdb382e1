# SPDX-License-Identifier: GPL-2.0-or-later
"""A state pack as one file that travels.

======  =====  ==========================================================================
offset  bytes  content (numbers little-endian)
======  =====  ==========================================================================
0       4      0x184d2a5f, a skippable frame of zstd: its tools pass over what follows
4       4      64, the length of the rest of this table
8       8      ``POSTLOAD``
16      4      version of this layout: 1
20      4      0
24      8      length of the manifest's frame
32      8      length of the content's frame
40      32     SHA-256 of all that follows
72             the manifest's frame: a tar member ``manifest.json``
...            the content's frame: the members that the manifest lists, and the end of the tar
======  =====  ==========================================================================

Both frames are zstd with a checksum, so that ``zstd -dc FILE | tar -x`` unpacks a pack without this program. The
content is one frame that looks 128 MiB back: kernel file, the kernel in RAM and the phases repeat each other far apart.
Nothing of the host goes in (owner, times, names): equal packs are equal files.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import zstandard

from harness.cache import publish_dir, sweep, temp_dir
from harness.errors import HostError, PackError, UsageError
from harness.files import sha256_file
from harness.packs.manifest import MANIFEST, PAGES, RAM_FILES, FileModel, Manifest, parse_manifest
from harness.packs.trust import refuse_host_access

if TYPE_CHECKING:
    from harness.packs.pack import StatePack

#: What a file needs to be called for ``record`` to make one.
SUFFIX = ".pack"
#: In :attr:`Manifest.packed`: what is no phase.
GUEST_PART = "guest"

_HEAD = struct.Struct("<II8sIIQQ32s")
_MAGIC = 0x184D2A5F
_NAME = b"POSTLOAD"
#: What the first bytes of every layout are.
_BEGINNING = struct.pack("<II8s", _MAGIC, _HEAD.size - 8, _NAME)
_LAYOUT = 1
_WINDOW_LOG = 27
_LEVEL = 9
_MANIFEST_LIMIT = 16 << 20
_CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


def is_packfile(path: Path) -> bool:
    """Whether a file begins as a pack does; a cut one still does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def unpacked(path: Path) -> Path:
    """The folder of a pack that is a file: in the cache, made when it is not there.

    :raises PackError: no pack, of a newer layout or schema, cut or changed, or a member that has no place in it; names
        file, offset or member, and what was expected
    :raises HostError: no space
    """
    if not path.is_file():
        raise PackError(f"{path} is not a state pack: no such file or folder")
    try:
        head = _read_head(path)
        key = f"packs/imported-{sha256_file(path)}"
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error
    return publish_dir(key, lambda folder: _unpack(path, head, folder))


def export_pack(pack: StatePack, path: Path) -> Path:
    """Write an open pack as one file, whole or not at all.

    :raises UsageError: there is something already
    :raises HostError: no space, or the folder cannot be written
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with temp_dir(path.parent) as temp:
            packed = _write_content(temp / "content", _parts(pack))
            _join(temp, pack.manifest.model_copy(update={"packed": packed}))
            _appear(temp / "whole", path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
    return path


def _appear(whole: Path, path: Path) -> None:
    """Unlike a rename, a link does not replace what is there."""
    try:
        os.link(whole, path)
    except FileExistsError as error:
        raise UsageError(f"{path}: it exists already; a state pack is never overwritten") from error


# writing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Bytes of a member and whose they are.

    :param owner: a phase, or ``guest``
    :param header: the member's header, when this is its beginning
    :param start: where they begin in the file, which has ``size_bytes`` in all
    :param last: the member ends with them
    """

    owner: str
    header: bytes
    source: Path
    start: int
    size_bytes: int
    last: bool


def _parts(pack: StatePack) -> Iterator[_Part]:
    """Everything behind the manifest, in order: what later parts repeat comes first."""
    manifest = pack.manifest
    sources = {name: pack.path / name for name in manifest.files}
    for name in manifest.guest_files():
        yield _whole(GUEST_PART, name, sources[name], manifest)
    size, start = manifest.files[PAGES].size_bytes, 0
    for number, phase in enumerate(pack.sizes):
        last = number == len(pack.sizes) - 1
        end = size if last else start + phase.page_bytes
        yield _Part(
            owner=phase.name,
            header=b"" if number else _member(PAGES, size),
            source=sources[PAGES],
            start=start,
            size_bytes=end - start,
            last=last,
        )
        start = end
    for phase in pack.sizes:
        for file in RAM_FILES:
            name = f"{phase.name}/{file}"
            yield _whole(phase.name, name, sources[name], manifest)


def _whole(owner: str, name: str, source: Path, manifest: Manifest) -> _Part:
    size = manifest.files[name].size_bytes
    return _Part(owner=owner, header=_member(name, size), source=source, start=0, size_bytes=size, last=True)


def _member(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _parameters(**more: Any) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(_LEVEL, write_checksum=True, **more)


def _write_content(path: Path, parts: Iterator[_Part]) -> dict[str, int]:
    """The content's frame; returns how many bytes of it each owner has."""
    packed: dict[str, int] = {}
    parameters = _parameters(window_log=_WINDOW_LOG, enable_ldm=True)
    with path.open("wb") as out:
        stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        for part in parts:
            start = out.tell()
            out.write(stream.compress(part.header))
            for chunk in _chunks(part):
                out.write(stream.compress(chunk))
            out.write(stream.compress(_padding(part.start + part.size_bytes) if part.last else b""))
            # a block ends here: what stands in the file so far is what the parts so far cost
            out.write(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            packed[part.owner] = packed.get(part.owner, 0) + out.tell() - start
        out.write(stream.compress(bytes(2 * _BLOCK)))
        out.write(stream.flush())
    return packed


def _chunks(part: _Part) -> Iterator[bytes]:
    with part.source.open("rb") as file:
        file.seek(part.start)
        left = part.size_bytes
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise HostError(f"{part.source} became shorter while it was read")
            left -= len(chunk)
            yield chunk


def _join(temp: Path, manifest: Manifest) -> None:
    text = manifest.text().encode()
    plain = _member(MANIFEST, len(text)) + text + _padding(len(text))
    frame = zstandard.ZstdCompressor(compression_params=_parameters()).compress(plain)
    digest = hashlib.sha256(frame)
    with (temp / "whole").open("wb") as out, (temp / "content").open("rb") as content:
        size = os.fstat(content.fileno()).st_size
        out.write(bytes(_HEAD.size) + frame)
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
        out.seek(0)
        out.write(_HEAD.pack(_MAGIC, _HEAD.size - 8, _NAME, _LAYOUT, 0, len(frame), size, digest.digest()))
        out.flush()
        os.fsync(out.fileno())


# reading


class _Head(NamedTuple):
    manifest_bytes: int
    content_bytes: int
    sha256: bytes


def _read_head(path: Path) -> _Head:
    """What the file says about itself.

    :raises PackError: not the head of a pack, or not followed by as many bytes
    """
    with path.open("rb") as file:
        data, size = file.read(_HEAD.size), os.fstat(file.fileno()).st_size
    start = data[: len(_BEGINNING)]
    if not data or start != _BEGINNING[: len(data)]:
        wanted, found = _BEGINNING.hex(" "), start.hex(" ") or "nothing"
        raise PackError(f"{path} is not a state pack: at offset 0: expected {wanted}, found {found}")
    if len(data) < _HEAD.size:
        raise PackError(f"{path}: {size} bytes, expected {_HEAD.size} for its head alone; the pack was cut")
    _, _, _, layout, zero, *rest = _HEAD.unpack(data)
    head = _Head(*rest)
    if layout != _LAYOUT or zero:
        raise PackError(f"{path}: at offset 16: layout {layout}.{zero}; this program reads layout {_LAYOUT}.0")
    if head.manifest_bytes > _MANIFEST_LIMIT:
        most = f"expected {_MANIFEST_LIMIT} at most"
        raise PackError(f"{path}: at offset 24: a manifest of {head.manifest_bytes} bytes, {most}")
    expected = _HEAD.size + head.manifest_bytes + head.content_bytes
    if size != expected:
        raise PackError(f"{path}: {size} bytes, expected {expected}; the pack was cut or changed")
    return head


def _unpack(path: Path, head: _Head, folder: Path) -> None:
    with path.open("rb") as file:
        file.seek(_HEAD.size)
        first = _Reader(path, io.BytesIO(file.read(head.manifest_bytes)), _HEAD.size, MANIFEST)
        name, size = _next(first)
        if name != MANIFEST or size > _MANIFEST_LIMIT:
            raise first.error(f"a member {name!r} of {size} bytes, expected {MANIFEST} of {_MANIFEST_LIMIT} at most")
        text = first.take(size)
        first.padding(size)
        first.end()
        manifest = parse_manifest(text, f"{path}: {MANIFEST}")
        _check_options(path, manifest)
        _check_space(folder, manifest)
        content = _Reader(path, file, 0, "the content")
        _unpack_members(content, manifest, folder)
        content.end()
        # last: until here an error names the member. Few bytes of zstd can change without a change of what they mean
        file.seek(_HEAD.size)
        if hashlib.file_digest(file, "sha256").digest() != head.sha256:
            raise PackError(f"{path}: SHA-256 of all from offset {_HEAD.size} on: not as at offset 40; it was changed")
    (folder / MANIFEST).write_bytes(text)
    folder.chmod(0o755)


def _check_options(path: Path, manifest: Manifest) -> None:
    try:
        refuse_host_access(manifest)
    except PackError as error:
        raise PackError(f"{path}: {MANIFEST}: {error}") from error


def _check_space(folder: Path, manifest: Manifest) -> None:
    needed = sum(file.size_bytes for file in manifest.files.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HostError(f"the pack needs {needed} bytes below {folder.parent}, and {free} are free")


def _unpack_members(reader: _Reader, manifest: Manifest, folder: Path) -> None:
    missing = dict(manifest.files)
    while missing:
        reader.at = f"the member before {next(iter(missing))}"
        name, size = _next(reader)
        wanted = missing.pop(name, None)
        if wanted is None:
            why = "is there twice" if name in manifest.files else f"is not listed in {MANIFEST}"
            raise reader.error(f"member {name!r} {why}")
        reader.at = name
        if size != wanted.size_bytes:
            raise reader.error(f"{size} bytes, expected {wanted.size_bytes}")
        _unpack_one(reader, folder / name, wanted)
    reader.at = "the end of the members"
    if any(reader.take(2 * _BLOCK)):
        raise reader.error("more members than the manifest lists")


def _unpack_one(reader: _Reader, target: Path, wanted: FileModel) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), wanted.size_bytes
    with target.open("xb") as out:
        while left:
            chunk = reader.take(min(left, _CHUNK))
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if digest.hexdigest() != wanted.sha256:
        raise reader.error(f"its SHA-256 is {digest.hexdigest()}, expected {wanted.sha256}")
    reader.padding(wanted.size_bytes)


def _next(reader: _Reader) -> tuple[str, int]:
    """Name and size of the next member: a plain file, whatever else a tar can hold."""
    block = reader.take(_BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeError) as error:
        raise reader.error(f"expected the header of a member: {error}") from error
    if info.type != tarfile.REGTYPE or info.size < 0:
        raise reader.error(f"member {info.name!r} of type {info.type!r}, expected a plain file")
    return info.name, info.size


class _Reader:
    """One frame, unpacked as it is asked for, so that no file can make it more than was asked.

    :param base: offset in the pack of what ``raw`` counts as 0
    :param at: what is being read, for errors
    """

    def __init__(self, path: Path, raw: IO[bytes], base: int, at: str) -> None:
        self._path = path
        self._raw = raw
        self._base = base
        self.at = at
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
        self._stream = decompressor.stream_reader(raw, closefd=False)

    def take(self, size: int) -> bytes:
        """As many bytes."""
        data = self._read(size)
        while len(data) < size:
            more = self._read(size - len(data))
            if not more:
                raise self.error(f"the content ends {size - len(data)} bytes short; the pack was cut or changed")
            data += more
        return data

    def padding(self, size: int) -> None:
        """The zeros behind a member of this size."""
        if any(self.take(-size % _BLOCK)):
            raise self.error("expected zeros behind it")

    def end(self) -> None:
        """Nothing may follow; reading on is also what has zstd compare its checksum."""
        if self._read(1):
            raise self.error("expected the end")

    def error(self, text: str) -> PackError:
        """An error with what was read, and how far the file was read by then."""
        return PackError(f"{self._path}: before offset {self._base + self._raw.tell()}: {self.at}: {text}")

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except zstandard.ZstdError as error:
            raise self.error(f"damaged: {error}") from error
