# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding a QEMU and asking it what it is, with scripts in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import MissingError, QemuError, UsageError
from harness.files import sha256_file
from harness.qemu import binary as binary_module
from harness.qemu.binary import PROBE_SCHEMA, HostProgram, QemuBinary, find_binary, host_binary, probe_binary

MakeScript = Callable[..., Path]
PROGRAM = HostProgram(name="qemu-system-mine", package="qemu-mine")
KEPT = {
    "target": "x86_64",
    "machines": [{"name": "pc-i440fx-7.2", "alias": "pc", "deprecated": False}],
    "devices": {"virtio-blk-pci": True, "nosuch": False},
    "capabilities": ["x-colo"],
}


@pytest.fixture
def script(tmp_path: Path, own_cache: Path) -> MakeScript:
    def make(text: str, name: str = "qemu", mode: int = 0o755) -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    return make


def says(version: str) -> str:
    return f"#!/bin/sh\ncat <<'END'\n{version}\nCopyright (c) 2003-2022\nEND\n"


def keep(own_cache: Path, path: Path, answers: object = KEPT) -> None:
    folder = own_cache / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{sha256_file(path)}-{PROBE_SCHEMA}.json").write_text(json.dumps(answers))


@pytest.mark.parametrize(
    ("line", "version", "build"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "7.2.22", "Debian 1:7.2+dfsg-7+deb12u18"),
        ("QEMU emulator version 9.0.50 (v9.0.0-1-gabc-dirty)", "9.0.50", "v9.0.0-1-gabc-dirty"),
        ("QEMU emulator version 11.1.3", "11.1.3", ""),
        ("QEMU emulator version 2.12.0(qemu-kvm-2.12)", "2.12.0", ""),
    ],
)
def test_the_version_line(script: MakeScript, own_cache: Path, line: str, version: str, build: str) -> None:
    path = script(says(line))
    keep(own_cache, path)
    found = probe_binary(path, ["virtio-blk-pci", "nosuch"])
    assert (found.version, found.build, found.path, found.sha256) == (version, build, str(path), sha256_file(path))
    assert (found.devices, found.capabilities) == (frozenset({"virtio-blk-pci"}), frozenset({"x-colo"}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\nexit 0\n", "--version printed 'nothing'"),
        ("#!/bin/sh\necho GNU bash, version 5.2\n", "'GNU bash, version 5.2'"),
        ("#!/bin/sh\necho qemu-img version 7.2.22\n", "qemu-img version"),
        ("#!/bin/sh\necho cannot load libfoo >&2; exit 1\n", "'cannot load libfoo'"),
        ("#!/nowhere/sh\n", "No such file"),
        ("just text\n", "format error"),
    ],
)
def test_what_is_no_qemu_is_told_with_what_it_said(script: MakeScript, text: str, said: str) -> None:
    path = script(text)
    with pytest.raises(UsageError, match="is not a QEMU system emulator") as caught:
        probe_binary(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_program_that_never_answers_is_not_waited_for(
    script: MakeScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary_module, "_VERSION_TIMEOUT_S", 0.2)
    # a child that keeps the output open, and touches a file when it is done: nobody may wait for that
    path = script(f"#!/bin/sh\n(sleep 3; touch {tmp_path}/done) &\nwait\n")
    with pytest.raises(UsageError, match="timed out"):
        probe_binary(path)
    assert not (tmp_path / "done").exists()


def test_a_program_that_is_stopped_is_waited_for(
    script: MakeScript, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary_module, "_VERSION_TIMEOUT_S", 0.5)
    path = script("#!/bin/sh\n(sleep 1; kill -CONT $$) &\nkill -STOP $$\necho QEMU emulator version 7.2.22\n")
    keep(own_cache, path)
    assert probe_binary(path).version == "7.2.22"


def test_a_qemu_that_does_not_start_is_no_usage_error(script: MakeScript) -> None:
    path = script(
        '#!/bin/sh\n[ "$1" = --version ] && { echo QEMU emulator version 7.2.22; exit; }\necho no module >&2\nexit 1\n'
    )
    with pytest.raises(QemuError, match=r"cannot be probed: .*exit status 1: no module"):
        probe_binary(path)


@pytest.mark.parametrize("answers", ["{", '{"devices": {}}'])
def test_answers_that_are_damaged_are_asked_for_anew(
    script: MakeScript, own_cache: Path, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    path = script(says("QEMU emulator version 7.2.22"))
    keep(own_cache, path)
    (kept,) = (own_cache / "probe").iterdir()
    kept.write_text(answers)
    monkeypatch.setattr(binary_module, "_ask", lambda _, types: {**KEPT, "devices": dict.fromkeys(types, True)})
    assert probe_binary(path, ["a"]).devices == {"a"}
    assert json.loads(kept.read_text())["devices"] == {"a": True}


def test_only_what_is_not_known_yet_asks_again_and_nothing_is_forgotten(
    script: MakeScript, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script(says("QEMU emulator version 7.2.22"))
    keep(own_cache, path)
    asked: list[set[str]] = []

    def ask(_: Path, types: set[str]) -> dict[str, object]:
        asked.append(types)
        return {**KEPT, "devices": dict.fromkeys(types, True)}

    monkeypatch.setattr(binary_module, "_ask", ask)
    probe_binary(path, ["nosuch"])
    assert asked == []
    probe_binary(path, ["new"])
    probe_binary(path, ["new", "nosuch"])
    assert asked == [{"new", "nosuch", "virtio-blk-pci"}]


def test_a_binary_is_found_by_path_name_and_environment(
    script: MakeScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script("#!/bin/sh\n", "qemu-system-mine")
    (tmp_path / "link").symlink_to(path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary(str(path)) == find_binary("qemu-system-mine") == host_binary(PROGRAM) == path
    assert find_binary(str(tmp_path / "link")) == path
    other = script("#!/bin/sh\n", "other")
    monkeypatch.setenv("POSTLOAD_QEMU", str(other))
    assert host_binary(PROGRAM) == other
    assert find_binary(str(path)) == path


def test_a_version_names_the_hosts_qemu_where_it_is_that_version(
    script: MakeScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = "#!/bin/sh\necho 'QEMU emulator version {} (Debian 1:7.2)'\n"
    host = script(say.format("7.2.22"), "qemu-system-x86_64")
    arm = script(say.format("10.0.13"), "qemu-system-aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary("7.2") == find_binary("7.2.22") == host
    assert find_binary("10.0-aarch64") == arm
    for other in ("7.1", "7.2.2", "10.0", "7.2-aarch64", "7.2-nosuch", "7"):
        with pytest.raises(UsageError, match="no such file or program"):
            find_binary(other)


def test_what_cannot_be_run_is_named(script: MakeScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = script("text", "text", mode=0o644)
    for given, said in [
        (str(text), "not executable"),
        (str(tmp_path), "no such"),
        (str(tmp_path / "gone"), "no such"),
        ("no-such-program", "no such"),
    ]:
        with pytest.raises(UsageError, match=said) as caught:
            find_binary(given)
        assert given in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="qemu-system-mine is not installed: apt-get install qemu-mine"):
        host_binary(PROGRAM)


def test_a_machine_goes_by_name_and_alias(binary: QemuBinary) -> None:
    assert binary.machine("pc") is binary.machine("pc-i440fx-7.2") is binary.machines[0]
    assert binary.machine("virt") is None
