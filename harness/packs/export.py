# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes an open state pack as one file; :mod:`harness.packs.packfile` has its layout and reads it."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from harness.errors import HostError, UsageError
from harness.files import sweep, temp_dir
from harness.packs.manifest import LOOK, MANIFEST, PAGES, RAM_FILES, Manifest
from harness.packs.pack import StatePack
from harness.packs.packfile import BLOCK, CHUNK, GUEST_PART, HEAD, LAYOUT, MAGIC, NAME, SUFFIX, WINDOW_LOG

_LEVEL = 9


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


@contextmanager
def new_pack(path: Path) -> Iterator[Path]:
    """A path to write a pack's folder at. Behind it the pack is where it shall be: one file that travels when it is
    called ``NAME.pack``, else that folder.

    :raises UsageError: there is something already
    :raises HostError: no space, or the folder cannot be written
    """
    if path.exists():
        raise UsageError(f"{path}: it exists already; a state pack is never overwritten")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            temp = stack.enter_context(temp_dir(path.parent))
        except OSError as error:
            raise HostError(f"cannot write in {path.parent}: {error.strerror}") from error
        yield temp / "pack"
        if path.suffix == SUFFIX:
            with StatePack(temp / "pack") as pack:
                export_pack(pack, path)
            return
        try:
            (temp / "pack").rename(path)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from error


def _appear(whole: Path, path: Path) -> None:
    """Unlike a rename, a link does not replace what is there."""
    try:
        os.link(whole, path)
    except FileExistsError as error:
        raise UsageError(f"{path}: it exists already; a state pack is never overwritten") from error


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
        for name in (f"{phase.name}/{file}" for file in (*RAM_FILES, LOOK)):
            if name in sources:
                yield _whole(phase.name, name, sources[name], manifest)


def _whole(owner: str, name: str, source: Path, manifest: Manifest) -> _Part:
    size = manifest.files[name].size_bytes
    return _Part(owner=owner, header=_member(name, size), source=source, start=0, size_bytes=size, last=True)


def _member(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _parameters(**more: Any) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(_LEVEL, write_checksum=True, **more)


def _write_content(path: Path, parts: Iterator[_Part]) -> dict[str, int]:
    """The content's frame; returns how many bytes of it each owner has."""
    packed: dict[str, int] = {}
    parameters = _parameters(window_log=WINDOW_LOG, enable_ldm=True)
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
        out.write(stream.compress(bytes(2 * BLOCK)))
        out.write(stream.flush())
    return packed


def _chunks(part: _Part) -> Iterator[bytes]:
    with part.source.open("rb") as file:
        file.seek(part.start)
        left = part.size_bytes
        while left:
            chunk = file.read(min(left, CHUNK))
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
        out.write(bytes(HEAD.size) + frame)
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            out.write(chunk)
        out.seek(0)
        out.write(HEAD.pack(MAGIC, HEAD.size - 8, NAME, LAYOUT, 0, len(frame), size, digest.digest()))
        out.flush()
        os.fsync(out.fileno())
