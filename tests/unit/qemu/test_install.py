# SPDX-License-Identifier: GPL-2.0-or-later
"""The course of an installation, with a mirror and a QEMU that are there on paper only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HostError, MissingError, QemuError, UsageError
from harness.qemu import install as install_module
from harness.qemu.binary import MachineType, QemuBinary
from harness.qemu.install import install_own, install_version
from harness.qemu.installed import Installed, entries, entry, qemus_folder, remove, write_launcher
from harness.qemu.versions import VERSIONS_FILE, is_version, load_versions
from harness.tools.apt import AptRoot, Package


class Silent:
    """Forgets what it is told, but for the steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.done: list[tuple[int, int]] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def download(self, done_bytes: int, total_bytes: int) -> None:
        self.done.append((done_bytes, total_bytes))


class Mirror:
    """What the suites have; ``asked`` are the suites in order, ``fetched`` the packages."""

    def __init__(self) -> None:
        self.versions = {"trixie": "1:10.0.13+ds-1", "sid": "1:11.1.3+ds-1"}
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.updates: list[bool] = []
        self.error: Exception | None = None
        self.fetch_error: Exception | None = None

    def update(self, root: AptRoot, *, force: bool = False) -> None:
        self.updates.append(force)
        if self.error is not None:
            raise self.error

    def plan(self, root: AptRoot, names: Sequence[str]) -> list[Package]:
        self.asked.append(root.suite)
        version = self.versions.get(root.suite)
        if version is None:
            raise HostError(f"no package lists of {root.suite}")
        return [self._package(name, version if "qemu" in name else "1.0") for name in names]

    def fetch(
        self, root: AptRoot, packages: Sequence[Package], into: Path, progress: Callable[[int], None] | None = None
    ) -> None:
        into.mkdir(parents=True, exist_ok=True)
        for package in packages:
            if self.fetch_error is not None and self.fetched:
                raise self.fetch_error
            (into / f"{package.sha256}.deb").write_bytes(self.content[package.sha256])
            self.fetched.append(package.name)
            if progress:
                progress(package.size_bytes)

    def _package(self, name: str, version: str) -> Package:
        data = f"{name} {version}".encode()
        digest = hashlib.sha256(data).hexdigest()
        self.content[digest] = data
        return Package(name=name, version=version, sha256=digest, size_bytes=len(data), installed_bytes=4096)


@pytest.fixture
def mirror(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    there = Mirror()
    for name in ("update", "plan", "fetch"):
        monkeypatch.setattr(AptRoot, name, _method(getattr(there, name)))
    monkeypatch.setattr(install_module, "build_prefix", build)
    monkeypatch.setattr(install_module, "prove_prefix", lambda *_: ["proved"])
    monkeypatch.setattr(install_module, "probe_binary", probe)
    monkeypatch.setattr(install_module, "patchelf_program", lambda: "patchelf")
    return there


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *given, **named: function(self, *given, **named)


def build(
    temp: Path, final: Path, debs: Sequence[Path], what: object, emulator: object, step: object, needed: str
) -> None:
    (temp / "root").mkdir()
    (temp / "root" / "program").write_bytes(b"".join(deb.read_bytes() for deb in debs))
    (temp / "root" / "program").chmod(0o755)
    write_launcher(temp, "#!/bin/sh\n", program=final / "root" / "program", sha256="ab" * 32, key=final.name)


def probe(launcher: Path) -> QemuBinary:
    version = launcher.parent.name.split("-")[0] + ".13"
    return QemuBinary(
        path=str(launcher),
        version=version,
        build="Debian",
        target="x86_64",
        sha256="ab" * 32,
        machines=(),
        devices=frozenset(),
        capabilities=frozenset(),
    )


def left() -> list[str]:
    """What lies in the folder of QEMUs."""
    return sorted(path.name for path in qemus_folder().glob("*")) if qemus_folder().exists() else []


def test_a_version_is_installed_and_the_second_time_nothing_is_asked(mirror: Mirror) -> None:
    report = Silent()
    done, origin = install_version("10.0", report)
    assert (done.version, done.source, done.package, done.full) == ("10.0.13", "trixie", "1:10.0.13+ds-1", False)
    assert (origin, mirror.asked, done.proof) == ("downloaded", ["trixie"], ("proved",))
    assert mirror.fetched == list(load_versions().versions["10.0"].packages)
    assert report.done[0] == (0, done.download_bytes)
    assert report.done[-1] == (done.download_bytes, done.download_bytes)
    assert entry("10.0") == done
    assert done.launcher.is_file()
    again, origin = install_version("10.0", report)
    assert (again, mirror.asked) == (done, ["trixie"])
    assert "already installed" in origin


def test_a_removed_version_comes_back_without_network(mirror: Mirror) -> None:
    first, _ = install_version("10.0", Silent())
    remove("10.0")
    assert left() == ["names"]
    mirror.error = HostError("Could not resolve 'mirror'")
    second, origin = install_version("10.0", Silent())
    assert second.folder == first.folder
    assert "no network" in origin


def test_a_package_that_was_damaged_in_the_cache_is_fetched_again(mirror: Mirror, own_cache: Path) -> None:
    install_version("10.0", Silent())
    remove("10.0")
    victim = next((own_cache / "debs").glob("*.deb"))
    victim.write_bytes(b"damaged")
    mirror.fetched.clear()
    install_version("10.0", Silent())
    assert len(mirror.fetched) == 1
    assert hashlib.sha256(victim.read_bytes()).hexdigest() == victim.stem


def test_refresh_takes_what_the_mirror_has_now_and_drops_the_old(mirror: Mirror) -> None:
    old, _ = install_version("10.0", Silent())
    mirror.versions["trixie"] = "1:10.0.14+ds-1"
    assert install_version("10.0", Silent())[0] == old
    new, _ = install_version("10.0", Silent(), refresh=True)
    assert (new.package, mirror.updates[-1]) == ("1:10.0.14+ds-1", True)
    assert left() == sorted(["names", Path(new.folder).name])
    mirror.error = HostError("Could not resolve 'mirror'")
    with pytest.raises(HostError, match="Could not resolve"):
        install_version("10.0", Silent(), refresh=True)
    assert entry("10.0") == new


def test_full_brings_more_packages_and_stays_full(mirror: Mirror) -> None:
    small, _ = install_version("10.0", Silent())
    big, _ = install_version("10.0", Silent(), full=True)
    assert big.full
    assert big.packages == small.packages + len(load_versions().versions["10.0"].full)
    assert install_version("10.0", Silent()) == (big, "already installed, nothing was done")


def test_the_next_source_is_asked_when_a_suite_has_moved_on(mirror: Mirror) -> None:
    mirror.versions["trixie-backports"] = "1:11.2.0+ds-1"
    done, _ = install_version("11.1", Silent())
    assert done.source == "sid"
    assert list(dict.fromkeys(mirror.asked)) == ["trixie-backports", "sid"]
    mirror.versions["sid"] = "1:12.0+ds-1"
    remove("11.1")
    with pytest.raises(HostError, match=r"trixie-backports from .*11\.2\.0.* there; sid from .*12\.0.* there"):
        install_version("11.1", Silent(), refresh=True)


def test_a_mirror_out_of_reach_is_asked_once_and_named(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLOAD_MIRROR", "http://mirror.test/debian")
    mirror.error = HostError("apt-get ended with status 100: E: Failed to fetch http://x  Could not resolve 'x'")
    with pytest.raises(HostError, match=r"mirror\.test.*Could not resolve.*POSTLOAD_MIRROR.*NAME=PATH") as caught:
        install_version("10.0", Silent())
    assert caught.value.exit_code == 3
    assert mirror.updates == [False]
    assert (entries(), left()) == ([], [])


def test_an_unknown_version_is_answered_with_the_known(mirror: Mirror) -> None:
    with pytest.raises(UsageError, match=r"unknown QEMU '9\.9'.*5\.2, 7\.2, 10\.0, 11\.1"):
        install_version("9.9", Silent())


def test_without_apt_the_way_out_is_named(mirror: Mirror) -> None:
    mirror.error = MissingError("program 'apt-get' is not installed")
    with pytest.raises(MissingError, match="apt-get"):
        install_version("5.2", Silent())


def test_a_download_that_breaks_off_goes_on_where_it_was(mirror: Mirror) -> None:
    mirror.fetch_error = HostError("packages could not be downloaded: Connection timed out")
    with pytest.raises(HostError, match="nothing was installed"):
        install_version("10.0", Silent())
    assert (entries(), left()) == ([], [])
    mirror.fetch_error = None
    before = list(mirror.fetched)
    install_version("10.0", Silent())
    assert sorted(mirror.fetched) == sorted(load_versions().versions["10.0"].packages)
    assert len(before) == 1


@pytest.mark.parametrize("where", ["download", "apt", "unpack"])
def test_a_full_disk_is_named_and_leaves_nothing(
    mirror: Mirror, own_cache: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "download":
        error = HostError("the disk of /x is full: free some space there, or name another folder in $POSTLOAD_CACHE")
        error.__cause__ = OSError(errno.ENOSPC, "full")
        mirror.fetch_error = error
    elif where == "apt":
        mirror.error = HostError("lists cannot be had: write (28: No space left on device)")
    else:
        monkeypatch.setattr(install_module, "build_prefix", full)
    with pytest.raises(HostError, match=r"is full: .*POSTLOAD_CACHE"):
        install_version("11.1" if where == "x" else "10.0", Silent())
    assert entries() == []
    assert [name for name in left() if not name.startswith(".tmp")] == []


def test_too_little_space_is_said_before_the_work(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10 << 20

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(HostError, match=r"10 MiB are free and 64 MiB are needed"):
        install_version("10.0", Silent())
    assert mirror.fetched == []


def test_what_fails_its_proof_gets_no_name(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[str]:
        raise HostError("qemu would use libz.so.1 => /lib/libz.so.1, which is not its own")

    monkeypatch.setattr(install_module, "prove_prefix", refuse)
    with pytest.raises(HostError, match="not its own"):
        install_version("10.0", Silent())
    assert (entries(), left()) == ([], [])


def test_a_program_that_says_another_version_gets_no_name(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.versions["bookworm"] = "1:7.2+dfsg-7"
    wrong = probe(Path("/10.0-x/qemu"))
    monkeypatch.setattr(install_module, "probe_binary", lambda _: wrong)
    with pytest.raises(QemuError, match=r"installed as 7\.2 and says that it is 10\.0\.13"):
        install_version("7.2", Silent())
    assert entries() == []


def test_a_folder_whose_installer_died_before_it_had_a_name_is_used(mirror: Mirror) -> None:
    done, _ = install_version("10.0", Silent())
    (qemus_folder() / "names" / "10.0.json").unlink()
    assert entries() == []
    again, _ = install_version("10.0", Silent())
    assert again.folder == done.folder


def own_build(tmp_path: Path) -> Path:
    path = tmp_path / "build" / "qemu-system-x86_64"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_an_own_build_keeps_its_folders_and_variables(mirror: Mirror, tmp_path: Path) -> None:
    path = own_build(tmp_path)
    done = install_own(
        "mine", path, datadirs=[path.parent], module_dir=path.parent, env={"ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert (done.kind, done.source, done.datadirs, done.module_dir) == (
        "path",
        str(path),
        (str(path.parent),),
        str(path.parent),
    )
    assert entry("mine") == done
    script = done.launcher.read_text()
    assert f"exec {path} -L {path.parent} " in script
    assert "export ASAN_OPTIONS=detect_leaks=0\n" in script
    assert f"export QEMU_MODULE_DIR={path.parent}\n" in script
    assert "unset" not in script


def test_what_is_no_build_is_refused(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_build(tmp_path)
    text = tmp_path / "text"
    text.write_text("")
    for name, given, named in [
        ("10.0", path, {}),
        ("mine", tmp_path / "gone", {}),
        ("mine", text, {}),
        ("mine", path, {"datadirs": [tmp_path / "gone"]}),
        ("mine", path, {"module_dir": text}),
    ]:
        with pytest.raises(UsageError):
            install_own(name, given, **named)  # type: ignore[arg-type]

    def not_qemu(launcher: Path) -> QemuBinary:
        raise UsageError(f"{launcher} is not a QEMU system emulator")

    monkeypatch.setattr(install_module, "probe_binary", not_qemu)
    with pytest.raises(UsageError, match=rf"^{path} is not a QEMU"):
        install_own("mine", path)
    assert (entries(), left()) == ([], [])


def test_an_own_build_without_its_firmware_is_refused_and_the_option_is_named(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_build(tmp_path)
    path.write_text("#!/bin/sh\necho \"qemu: could not load PC BIOS 'bios-256k.bin'\" >&2\nexit 1\n")
    pc = MachineType(name="pc-i440fx-10.0", alias="pc", deprecated=False)
    monkeypatch.setattr(install_module, "probe_binary", lambda launcher: replace(probe(launcher), machines=(pc,)))
    with pytest.raises(UsageError, match=rf"^{path} starts no machine pc: .*bios-256k.bin(.|\n)*--datadir DIR"):
        install_own("mine", path)
    assert (entries(), left()) == ([], [])


def test_an_own_build_that_breaks_later_keeps_its_name(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_build(tmp_path)
    done = install_own("mine", path)

    def broken(_: Path) -> QemuBinary:
        raise QemuError("it did not start")

    monkeypatch.setattr(install_module, "probe_binary", broken)
    with pytest.raises(QemuError):
        install_own("mine", path)
    assert entry("mine") == done
    assert done.launcher.is_file()


@pytest.mark.parametrize(
    ("name", "version", "same"),
    [
        ("10.0", "1:10.0.13+ds-0+deb13u1", True),
        ("10.0", "1:10.0~rc1-1", True),
        ("11.1", "1:11.1.3+ds-1~bpo13+1", True),
        ("5.2", "1:5.2+dfsg-11+deb11u5", True),
        ("5.2", "1:5.20+dfsg-1", False),
        ("1.1", "1:11.1.3", False),
        ("7.2", "1:8.7.2+ds", False),
        ("10.0-aarch64", "1:10.0.13+ds-0+deb13u1", True),
        ("10.0-aarch64", "1:11.1.3", False),
    ],
)
def test_versions_of_debian(name: str, version: str, same: bool) -> None:
    assert is_version(name, version) is same


def test_the_list_of_versions_is_whole() -> None:
    what = load_versions()
    assert list(what.versions) == ["5.2", "7.2", "10.0", "11.1", "7.2-aarch64", "10.0-aarch64", "11.1-aarch64"]
    for name, version in what.versions.items():
        assert what.emulator(name).package in version.packages
        assert what.emulator(name).program.startswith(what.keep)
    assert [what.emulator(name).machines for name in ("10.0", "10.0-aarch64")] == [("pc", "q35"), ("virt",)]
    assert all(f"{folder}/".startswith(what.keep) for folder in what.firmware_folders)
    assert VERSIONS_FILE.parent.name == "qemu"


def test_as_json_and_back() -> None:
    one = Installed(
        name="a", kind="path", version="1", build="", source="/x", program="/x", sha256="0", folder="/f", proof=("p",)
    )
    assert Installed.from_json(json.loads(json.dumps(one.to_json()))) == one
