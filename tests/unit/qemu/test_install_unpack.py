# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages unpacked into a prefix: nothing may point, or be written, out of it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.qemu.unpack import link_target, merged, unpack


def deb(path: Path, *members: tuple[str, str, str]) -> Path:
    """A package with the given members: path, kind (file, link, hard, folder), content or target."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = {"file": b"0", "hard": b"1", "link": b"2", "pipe": b"6", "folder": b"5"}[kind]
            info.mode = 0o4755 if "/bin/" in name else 0o644
            info.linkname = content if kind in ("link", "hard") else ""
            body = content.encode() if kind == "file" else b""
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("./control"))
    parts = [("debian-binary", b"2.0\n"), ("control.tar", control.getvalue()), ("data.tar", data.getvalue())]
    text = b"!<arch>\n"
    for name, body in parts:
        text += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    path.write_bytes(text)
    return path


@pytest.mark.parametrize(
    ("given", "inside"),
    [
        ("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
        ("/lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("./usr/lib/x", "usr/lib/x"),
        ("./../../etc/passwd", "etc/passwd"),
        ("./libx/y", "libx/y"),
        ("./", ""),
    ],
)
def test_a_path_of_a_package_in_the_prefix(given: str, inside: str) -> None:
    assert merged(given) == inside


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("./lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-2.31.so", "../lib/x86_64-linux-gnu/ld-2.31.so"),
        ("./usr/lib/x86_64-linux-gnu/libz.so", "../../../lib/x86_64-linux-gnu/libz.so.1", "libz.so.1"),
        ("./lib/x86_64-linux-gnu/libz.so.1", "libz.so.1.2.11", "libz.so.1.2.11"),
        ("./usr/share/qemu/bios.bin", "../seabios/bios.bin", "../seabios/bios.bin"),
        ("./usr/lib/a", "../../../../../etc/passwd", "../../etc/passwd"),
        ("./usr/lib/a", "/dev/null", "../../dev/null"),
    ],
)
def test_a_link_is_relative_and_stays_inside(name: str, target: str, said: str) -> None:
    assert link_target(name, target) == said


def test_the_wanted_part_is_unpacked(tmp_path: Path) -> None:
    package = deb(
        tmp_path / "a.deb",
        ("./usr/lib", "folder", ""),
        ("./lib/libz.so.1", "file", "z"),
        ("./usr/lib/libz.so", "link", "/lib/libz.so.1"),
        ("./usr/lib/libz.hard", "hard", "./lib/libz.so.1"),
        ("./usr/lib/gconv/x.so", "file", "x"),
        ("./usr/lib/pipe", "pipe", ""),
        ("./usr/bin/qemu", "file", "q"),
        ("./usr/share/doc/x", "file", "doc"),
        ("./../escaped", "file", "bad"),
    )
    root = tmp_path / "root"
    count = unpack(package, root, keep=["usr/lib/", "usr/bin/qemu"], leave=["usr/lib/gconv/"])
    assert count == 4
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
    assert files == ["usr/bin/qemu", "usr/lib/libz.hard", "usr/lib/libz.so", "usr/lib/libz.so.1"]
    assert (root / "usr/lib/libz.so").resolve() == root / "usr/lib/libz.so.1"
    assert (root / "usr/lib/libz.so").read_text() == (root / "usr/lib/libz.hard").read_text() == "z"
    assert (root / "usr/bin/qemu").stat().st_mode & 0o7777 == 0o755
    assert not (tmp_path / "escaped").exists()


def test_a_later_package_replaces_a_file_and_not_what_a_link_points_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/a").symlink_to(outside)
    unpack(deb(tmp_path / "a.deb", ("./usr/lib/a", "file", "new")), root, keep=["usr/lib/"])
    assert outside.read_text() == "kept"
    assert (root / "usr/lib/a").read_text() == "new"


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    package = deb(tmp_path / "a.deb", ("./usr/lib/a", "file", "x" * 2000))
    package.write_bytes(package.read_bytes()[:-2600])
    with pytest.raises(HostError):
        unpack(package, tmp_path / "root", keep=["usr/lib/"])
