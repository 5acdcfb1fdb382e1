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
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from harness.cache import cache_root, publish_dir
from harness.errors import HostError, PackError
from harness.files import sha256_file
from harness.guests.foreign import check_plan
from harness.packs.manifest import MANIFEST, FileModel, Manifest, parse_manifest

#: What a file needs to be called for ``record`` to make one.
SUFFIX = ".pack"
#: In :attr:`Manifest.packed`: what is no phase.
GUEST_PART = "guest"

HEAD = struct.Struct("<II8sIIQQ32s")
MAGIC = 0x184D2A5F
NAME = b"POSTLOAD"
#: What the first bytes of every layout are.
_BEGINNING = struct.pack("<II8s", MAGIC, HEAD.size - 8, NAME)
LAYOUT = 1
WINDOW_LOG = 27
_MANIFEST_LIMIT = 16 << 20
_IMPORTED = "imported-"
CHUNK = 1 << 20
BLOCK = tarfile.BLOCKSIZE


def is_packfile(path: Path) -> bool:
    """Whether a file begins as a pack does; a cut one still does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def unpacked(path: Path) -> Path:
    """The folder of a pack that is a file: in the cache, made when it is not there.

    Its name tells it from a recording of this user's own: see :func:`is_foreign`.

    :raises PackError: no pack, of a newer layout or schema, cut or changed, or a member that has no place in it; names
        file, offset or member, and what was expected
    :raises HostError: no space
    """
    if not path.is_file():
        raise PackError(f"{path} is not a state pack: no such file or folder")
    try:
        head = _read_head(path)
        key = f"packs/{_IMPORTED}{sha256_file(path)}"
    except OSError as error:
        raise PackError(f"{path}: {error.strerror}") from error
    return publish_dir(key, lambda folder: _unpack(path, head, folder))


def is_foreign(folder: Path) -> bool:
    """Whether a pack's folder is anything but a recording that this program made in this user's cache."""
    own = (cache_root() / "packs").resolve()
    there = folder.resolve()
    return there.parent != own or there.name.startswith(_IMPORTED)


def part_key(digest: str, *, foreign: bool) -> str:
    """Where the cache has a part of a pack.

    :param foreign: of the whole; see :func:`is_foreign`
    """
    return f"packs/{_IMPORTED if foreign else ''}part-{digest}"


class _Head(NamedTuple):
    manifest_bytes: int
    content_bytes: int
    sha256: bytes


def _read_head(path: Path) -> _Head:
    """What the file says about itself.

    :raises PackError: not the head of a pack, or not followed by as many bytes
    """
    with path.open("rb") as file:
        data, size = file.read(HEAD.size), os.fstat(file.fileno()).st_size
    start = data[: len(_BEGINNING)]
    if not data or start != _BEGINNING[: len(data)]:
        wanted, found = _BEGINNING.hex(" "), start.hex(" ") or "nothing"
        raise PackError(f"{path} is not a state pack: at offset 0: expected {wanted}, found {found}")
    if len(data) < HEAD.size:
        raise PackError(f"{path}: {size} bytes, expected {HEAD.size} for its head alone; the pack was cut")
    _, _, _, layout, zero, *rest = HEAD.unpack(data)
    head = _Head(*rest)
    if layout != LAYOUT or zero:
        raise PackError(f"{path}: at offset 16: layout {layout}.{zero}; this program reads layout {LAYOUT}.0")
    if head.manifest_bytes > _MANIFEST_LIMIT:
        most = f"expected {_MANIFEST_LIMIT} at most"
        raise PackError(f"{path}: at offset 24: a manifest of {head.manifest_bytes} bytes, {most}")
    expected = HEAD.size + head.manifest_bytes + head.content_bytes
    if size != expected:
        raise PackError(f"{path}: {size} bytes, expected {expected}; the pack was cut or changed")
    return head


def _unpack(path: Path, head: _Head, folder: Path) -> None:
    with path.open("rb") as file:
        file.seek(HEAD.size)
        first = _Reader(path, io.BytesIO(file.read(head.manifest_bytes)), HEAD.size, MANIFEST)
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
        file.seek(HEAD.size)
        if hashlib.file_digest(file, "sha256").digest() != head.sha256:
            raise PackError(f"{path}: SHA-256 of all from offset {HEAD.size} on: not as at offset 40; it was changed")
    (folder / MANIFEST).write_bytes(text)
    folder.chmod(0o755)


def _check_options(path: Path, manifest: Manifest) -> None:
    try:
        check_plan(manifest.plan, manifest.accel)
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
    if any(reader.take(2 * BLOCK)):
        raise reader.error("more members than the manifest lists")


def _unpack_one(reader: _Reader, target: Path, wanted: FileModel) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), wanted.size_bytes
    with target.open("xb") as out:
        while left:
            chunk = reader.take(min(left, CHUNK))
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if digest.hexdigest() != wanted.sha256:
        raise reader.error(f"its SHA-256 is {digest.hexdigest()}, expected {wanted.sha256}")
    reader.padding(wanted.size_bytes)


def _next(reader: _Reader) -> tuple[str, int]:
    """Name and size of the next member: a plain file, whatever else a tar can hold."""
    block = reader.take(BLOCK)
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
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG)
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
        if any(self.take(-size % BLOCK)):
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
