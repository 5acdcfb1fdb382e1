# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans and downloads of the private apt root, with scripts in the place of apt."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.errors import HostError, MissingError
from harness.tools import apt as apt_module
from harness.tools.apt import AptRoot, Mirror, Package

ONE, TWO = b"first package", b"second package"
HASHES = [hashlib.sha256(data).hexdigest() for data in (ONE, TWO)]

# a virtual package gives an `Inst` line with brackets, and `apt-cache show` more records than were asked for
SIMULATED = """\
NOTE: This is only a simulation!
Inst libc6 (2.41-12 Debian:13.1/stable [amd64])
Inst qemu-system-x86 (1:10.0.13+ds-0+deb13u1 Debian-Security:13/stable-security [amd64]) []
Conf libc6 (2.41-12 Debian:13.1/stable [amd64])
"""


def shown() -> str:
    def record(name: str, version: str, digest: str, size: int) -> str:
        return (
            f"Package: {name}\nVersion: {version}\nInstalled-Size: 12\nFilename: pool/{name}.deb\n"
            f"Size: {size}\nSHA256: {digest}\nDescription: one\n two\n .\n three\n"
        )

    old = record("qemu-system-x86", "1:10.0.2+ds-2", "00" * 32, 1)
    new = record("qemu-system-x86", "1:10.0.13+ds-0+deb13u1", HASHES[1], len(TWO))
    return "\n".join([record("libc6", "2.41-12", HASHES[0], len(ONE)), old, new])


@pytest.fixture
def tools(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of $PATH with an apt-get and an apt-cache of the test's own; ``calls`` has what was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "simulated").write_text(SIMULATED)
    (tmp_path / "shown").write_text(shown())
    (tmp_path / "one").write_bytes(ONE)
    (tmp_path / "two").write_bytes(TWO)
    script(folder / "apt-cache", f"cat {tmp_path}/shown")
    body = f"""
        echo "$*" >> {tmp_path}/calls
        case "$*" in
        *simulate*) cat {tmp_path}/simulated ;;
        *download*libc6*) cp {tmp_path}/one libc6_2.41-12_amd64.deb ;;
        *download*) cp {tmp_path}/two qemu-system-x86_1%3a10.0.13_amd64.deb ;;
        esac"""
    script(folder / "apt-get", body)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(apt_module, "KEYRING", tmp_path / "one")
    return folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_plan_is_the_closure_with_the_records_of_these_versions(tools: Path) -> None:
    plan = AptRoot("trixie").plan(["qemu-system-x86"])
    assert plan == [
        Package(name="libc6", version="2.41-12", sha256=HASHES[0], size_bytes=len(ONE), installed_bytes=12288),
        Package(
            name="qemu-system-x86",
            version="1:10.0.13+ds-0+deb13u1",
            sha256=HASHES[1],
            size_bytes=len(TWO),
            installed_bytes=12288,
        ),
    ]


def test_packages_are_kept_by_hash_and_not_fetched_again(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt_module, "_PIECE_BYTES", 1)
    root, into, came = AptRoot("trixie"), tmp_path / "debs", list[int]()
    plan = root.plan(["qemu-system-x86"])
    root.fetch(plan, into, came.append)
    assert sorted(path.name for path in into.iterdir()) == sorted(f"{digest}.deb" for digest in HASHES)
    assert came == [len(ONE), len(TWO)]
    before = (tmp_path / "calls").read_text()
    root.fetch(plan, into)
    assert (tmp_path / "calls").read_text() == before
    (into / f"{HASHES[1]}.deb").unlink()
    root.fetch(plan, into)
    assert (tmp_path / "calls").read_text().count("download libc6=2.41-12\n") == 1


def test_a_package_that_is_not_what_its_list_says_is_refused(tools: Path, tmp_path: Path) -> None:
    root = AptRoot("trixie")
    plan = root.plan(["qemu-system-x86"])[:1]
    (tmp_path / "one").write_bytes(b"changed on the way")
    with pytest.raises(HostError, match=r"libc6 2\.41-12 .* is not what its list says"):
        root.fetch(plan, tmp_path / "debs")
    assert list((tmp_path / "debs").iterdir()) == []


@pytest.mark.parametrize(
    "words", ["Error writing to file - write (28: No space left on device)", "You don't have enough free space in /x"]
)
def test_apt_without_space_is_a_full_disk(tools: Path, tmp_path: Path, words: str) -> None:
    root = AptRoot("trixie")
    plan = root.plan(["qemu-system-x86"])
    script(tools / "apt-get", f'echo "E: {words}" >&2; exit 100')
    with pytest.raises(HostError, match=r"the disk of .*debs is full: .*POSTLOAD_CACHE"):
        root.fetch(plan, tmp_path / "debs")


def test_a_plan_without_its_record_is_an_error(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "shown").write_text(shown().split("\n\n")[0])
    with pytest.raises(HostError, match=r"qemu-system-x86 of trixie .* not in its list"):
        AptRoot("trixie").plan(["qemu-system-x86"])


def test_without_apt_the_other_way_is_named(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"'apt-get' is not installed.*use an own build"):
        AptRoot("trixie", otherwise="use an own build").plan(["qemu-system-x86"])
    with pytest.raises(MissingError, match="name a kernel and a busybox"):
        AptRoot("trixie").plan(["qemu-system-x86"])


@pytest.mark.parametrize(("ended", "said"), [(True, True), (False, False)])
def test_an_archived_release_may_be_old_and_signed_by_old_keys(tools: Path, ended: bool, said: bool) -> None:
    root = AptRoot("bullseye", mirror=Mirror(main="http://archive.test/debian", security=None, ended=ended))
    root.plan(["qemu-system-x86"])
    text = (root.root / "etc" / "sources.list").read_text()
    assert ("check-valid-until=no" in text, "removed-keys" in text) == (said, said)
    assert "http://archive.test/debian bullseye main" in text
    assert len(text.splitlines()) == 1


#: What apt-get of Debian 12 and of Debian 13 print where nobody listens: standard output, standard error.
NOBODY_LISTENS = {
    "2.6": (
        "Err:1 http://127.0.0.1:9/debian trixie InRelease\n"
        "  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)\n"
        "Reading package lists...\n",
        "E: Failed to fetch http://127.0.0.1:9/debian/dists/trixie/InRelease  "
        "Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)\n"
        "E: Some index files failed to download. They have been ignored, or old ones used instead.\n",
    ),
    "3.0": (
        "Ign:1 http://127.0.0.1:9/debian trixie InRelease\n"
        "Err:1 http://127.0.0.1:9/debian trixie InRelease\n"
        "  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)\n"
        "  Unable to connect to 127.0.0.1:9:\n"
        "Reading package lists...\n",
        "E: Failed to fetch http://127.0.0.1:9/debian/dists/trixie/InRelease  Unable to connect to 127.0.0.1:9:\n"
        "E: Some index files failed to download. They have been ignored, or old ones used instead.\n",
    ),
}


@pytest.mark.parametrize("apt", NOBODY_LISTENS)
def test_why_nothing_came_is_said_once_whatever_the_apt(apt: str, tools: Path, tmp_path: Path) -> None:
    out, err = NOBODY_LISTENS[apt]
    (tmp_path / "out").write_text(out)
    (tmp_path / "err").write_text(err)
    script(tools / "apt-get", f"cat {tmp_path}/out; cat {tmp_path}/err >&2; exit 100")
    with pytest.raises(HostError) as caught:
        AptRoot("trixie").update()
    assert str(caught.value).count("Connection refused") == 1
    assert "Reading package lists" not in str(caught.value)
