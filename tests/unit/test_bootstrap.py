# SPDX-License-Identifier: GPL-2.0-or-later
"""The set-up on machines that lack something: each is a PATH folder with a few shell scripts."""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

import harness
from harness import bootstrap, errors

OFFLINE = """\
echo "W: Failed to fetch http://deb.debian.org/debian/dists/x/InRelease  Temporary failure resolving 'deb.debian.org'"
echo "$@" | grep -q install || exit 0
echo "E: Unable to locate package qemu-system-x86"
exit 100
"""
#: apt 3 says what is wrong in the list of what it did, and only the host's name in its errors.
OFFLINE_3 = """\
echo "Err:1 http://deb.debian.org/debian x InRelease"
echo "  Temporary failure resolving 'deb.debian.org'"
echo "  Unable to connect to deb.debian.org:http:"
echo "W: Failed to fetch http://deb.debian.org/debian/dists/x/InRelease  Unable to connect to deb.debian.org:http:"
echo "$@" | grep -q install || exit 0
exit 100
"""
BROKEN = 'echo "$@" | grep -q install || exit 0; echo "E: Unmet dependencies."; echo note; exit 100'
PIP_OFFLINE = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError': /simple/hatchling/
ERROR: Could not find a version that satisfies the requirement hatchling>=1.21 (from versions: none)
"""
PIP_CONFLICT = "ERROR: Could not find a version that satisfies the requirement tox>=4 (from versions: 3.28)\nERROR: 2\n"
# Stands in for the python of a venv: `pip install` leaves the scripts that pip would leave.
PIP = """\
#!/bin/sh
echo "pip $*" >> "$CALLS"
here=$(dirname "$0")
case "$*" in *tox*) name=tox;; *) name=postload;; esac
printf '#!/bin/sh\\n' > "$here/$name"; chmod +x "$here/$name"
"""


class ReplacedError(Exception):
    """What would have replaced the process."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(argv)
        self.argv = argv


#: What a real libvirt is asked with, and the packages of it.
LIBVIRT = {
    "virsh": "libvirt-clients",
    "virt-qemu-run": "libvirt-daemon-driver-qemu",
    "swtpm_setup": "swtpm-tools",
}
#: What only the tests want.
OTHERS = {"qemu-system-aarch64": "qemu-system-arm", "swtpm": "swtpm", "qemu-storage-daemon": "qemu-utils"}


class Machine:
    """A checkout and a PATH; ``calls`` are the command lines of the fakes, in their order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "checkout"
        self.bin = folder / "bin"
        self.log = folder / "calls"
        self.venv = self.root / ".venv"
        self.root.mkdir()
        self.bin.mkdir()
        self.project("one")
        for name, value in {"ROOT": self.root, "VENV": self.venv}.items():
            monkeypatch.setattr(bootstrap, name, value)
        monkeypatch.setattr(bootstrap, "STATE", self.venv / "setup.json")
        monkeypatch.setattr(bootstrap, "LOG", self.venv / "setup.log")
        monkeypatch.setattr(bootstrap, "_POSTGRESQL", folder / "postgresql")
        monkeypatch.setattr(bootstrap, "_KEYRING", self.root / "pyproject.toml")
        monkeypatch.setattr(sys, "_base_executable", str(self.bin / "python3"), raising=False)
        monkeypatch.setattr(os, "execv", self._execv)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("CALLS", str(self.log))
        monkeypatch.delenv("POSTLOAD_QEMU", raising=False)
        for tool in ("sh", "grep", "mkdir", "chmod", "dirname", "cat"):
            real = next(p for d in ("/bin", "/usr/bin") if (p := Path(d, tool)).exists())
            (self.bin / tool).symlink_to(real)
        for tool in ("dpkg-deb", "qemu-system-x86_64", "gdb", "initdb", *OTHERS, *LIBVIRT):
            self.program(tool, "exit 1")
        self.program("setpriv", 'shift 2; exec "$@"')
        self.program("apt-get", "exit 0")
        (folder / "pip").write_text(PIP)
        # python3 -m venv --clear DIR
        make = f'mkdir -p "$4/bin"; cat {folder}/pip > "$4/bin/python"; chmod +x "$4/bin/python"'
        self.program("python3", make)

    @staticmethod
    def _execv(_path: str, argv: list[str]) -> None:
        raise ReplacedError(argv)

    def project(self, text: str) -> None:
        (self.root / "pyproject.toml").write_text(text)

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\n{body}\n')
        path.chmod(0o755)

    def lacks(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink()

    @property
    def calls(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if not line.startswith("setpriv")]

    def becomes(self, *argv: str) -> list[str]:
        """What the set-up ends as, with paths below the venv."""
        with pytest.raises(ReplacedError) as caught:
            bootstrap.main(argv)
        program, *rest = caught.value.argv
        return [str(Path(program).relative_to(self.venv)), *rest]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_fresh_machine_gets_packages_a_venv_and_the_project(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.lacks("qemu-system-x86_64")
    assert machine.becomes("matrix", "--out", "a b") == ["bin/postload", "matrix", "--out", "a b"]
    update, install, venv, pip = machine.calls
    assert update.startswith("apt-get update")
    assert install.startswith("apt-get install -y --no-install-recommends qemu-system-x86 ")
    assert venv == f"python3 -m venv --clear {machine.venv}"
    assert pip.endswith(f"-e {machine.root}")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(": ")[2] for line in err.splitlines()] == [
        "apt-get update",
        "apt-get installs qemu-system-x86",
        "making .venv",
        "pip installs the project into .venv",
    ]


def test_a_second_run_is_silent_and_starts_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.becomes("matrix")
    before = machine.calls
    capsys.readouterr()
    assert machine.becomes("inspect", "x.stream") == ["bin/postload", "inspect", "x.stream"]
    assert machine.calls == before
    assert capsys.readouterr() == ("", "")


def test_the_tests_need_tox_and_not_the_project(machine: Machine) -> None:
    before = Path.cwd()
    try:
        assert machine.becomes("test", "-e", "unit") == ["bin/tox", "-e", "unit"]
        assert Path.cwd() == machine.root
    finally:
        os.chdir(before)
    assert next(call for call in machine.calls if call.startswith("pip")).endswith("tox>=4")
    assert bootstrap.main(["setup"]) == 0
    assert machine.calls[-1].endswith(f"-e {machine.root}")


def test_a_changed_pyproject_installs_again_into_the_same_venv(machine: Machine) -> None:
    machine.becomes("matrix")
    machine.project("two")
    machine.becomes("matrix")
    assert [call.split()[0] for call in machine.calls] == ["python3", "pip", "pip"]


@pytest.mark.parametrize("damage", ["python", "state", "moved"])
def test_a_broken_venv_is_made_again(machine: Machine, damage: str) -> None:
    machine.becomes("matrix")
    if damage == "python":
        (machine.venv / "bin/python").unlink()
        (machine.venv / "bin/python").symlink_to("/gone")
        machine.program("python3", 'rm="$4/bin/python"; mkdir -p "$4/bin"; exit 1')
    elif damage == "state":
        (machine.venv / "setup.json").write_text("{")
    else:
        state = json.loads((machine.venv / "setup.json").read_text())
        state["venv"] = state["venv"].replace("checkout", "elsewhere")
        (machine.venv / "setup.json").write_text(json.dumps(state))
    calls = len(machine.calls)
    if damage == "python":
        assert bootstrap.main(["matrix"]) == 3
    else:
        machine.becomes("matrix")
    assert f"python3 -m venv --clear {machine.venv}" in machine.calls[calls:]


def test_a_venv_that_somebody_made_is_kept(machine: Machine) -> None:
    python = machine.venv / "bin/python"
    python.parent.mkdir(parents=True)
    answer = f'case "$1" in -c) echo "{sys.version_info[:2]} {machine.venv}"; exit;; esac\n'
    python.write_text(PIP.replace("here=", answer + "here="))
    python.chmod(0o755)
    machine.becomes("matrix")
    assert not [call for call in machine.calls if call.startswith("python3")]


def test_without_root_and_sudo_the_message_is_the_command(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.lacks("qemu-system-x86_64")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert bootstrap.main(["matrix"]) == 3
    assert machine.calls == []
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "apt-get update && apt-get install -y --no-install-recommends qemu-system-x86" in error


def test_sudo_is_used_when_there_is_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.lacks("qemu-system-x86_64")
    machine.program("sudo", "exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine.becomes("matrix")
    first, second = [call for call in machine.calls if call.startswith("sudo")]
    assert first.endswith("apt-get update -q")
    assert "DEBIAN_FRONTEND" in second
    assert "apt-get install -y" in second


def test_another_distribution_is_told_what_is_missing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.lacks("qemu-system-x86_64", "apt-get", "dpkg-deb")
    assert bootstrap.main(["matrix"]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for what in ("qemu-system-x86_64", "apt-get", "dpkg-deb"):
        assert what in error


def test_inspect_and_help_need_no_qemu(machine: Machine) -> None:
    machine.lacks("qemu-system-x86_64", "apt-get", "dpkg-deb", "setpriv")
    assert machine.becomes("inspect", "x") == ["bin/postload", "inspect", "x"]
    assert machine.becomes("matrix", "--help") == ["bin/postload", "matrix", "--help"]


@pytest.mark.parametrize("words", [["--qemu", "/q"], ["--qemu=/q"]])
def test_a_named_qemu_is_not_installed(machine: Machine, words: list[str]) -> None:
    machine.lacks("qemu-system-x86_64")
    machine.becomes("matrix", *words)
    assert not [call for call in machine.calls if call.startswith("apt-get")]


@pytest.mark.parametrize(("command", "wanted"), [("test", True), ("explain", True), ("matrix", False)])
def test_stacks_need_gdb(machine: Machine, command: str, wanted: bool) -> None:
    machine.lacks("gdb")
    needs = [need.package for need in bootstrap.missing_needs(command)]
    assert ("gdb" in needs) is wanted


@pytest.mark.parametrize(
    ("program", "package"),
    [*OTHERS.items(), *LIBVIRT.items()],
)
@pytest.mark.parametrize(("command", "wanted"), [("test", True), ("matrix", False)])
def test_only_the_tests_bring_what_few_devices_want(
    machine: Machine, program: str, package: str, command: str, wanted: bool
) -> None:
    machine.lacks(program)
    needs = [need.package for need in bootstrap.missing_needs(command)]
    assert (package in needs) is wanted


@pytest.mark.parametrize(("command", "wanted"), [("test", True), ("matrix", False), ("history", False)])
def test_only_the_tests_bring_a_postgresql(machine: Machine, tmp_path: Path, command: str, wanted: bool) -> None:
    machine.lacks("initdb")
    assert ("postgresql" in [need.package for need in bootstrap.missing_needs(command)]) is wanted
    debian = tmp_path / "postgresql" / "17" / "bin"
    debian.mkdir(parents=True)
    (debian / "initdb").touch()
    assert "postgresql" not in [need.package for need in bootstrap.missing_needs(command)]


@pytest.mark.parametrize("offline", [OFFLINE, OFFLINE_3])
def test_offline_apt_names_the_package_and_the_host(
    machine: Machine, capsys: pytest.CaptureFixture[str], offline: str
) -> None:
    machine.lacks("qemu-system-x86_64")
    machine.program("apt-get", offline)
    assert bootstrap.main(["matrix"]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "qemu-system-x86 could not be had" in message
    assert "deb.debian.org cannot be reached (Temporary failure resolving" in message
    assert "run the same line again" in message
    assert not machine.venv.exists()


def test_a_failing_apt_gives_its_own_reason(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.lacks("qemu-system-x86_64")
    machine.program("apt-get", BROKEN)
    assert bootstrap.main(["matrix"]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "E: Unmet dependencies." in message
    assert "note" not in message


@pytest.mark.parametrize(
    ("output", "says"), [(PIP_OFFLINE, "PyPI cannot be reached"), (PIP_CONFLICT, "requirement tox>=4")]
)
def test_a_failing_pip_is_told_in_one_line_and_tried_again(
    machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path, output: str, says: str
) -> None:
    (tmp_path / "pip").write_text(f"#!/bin/sh\ncat <<'EOF'\n{output}EOF\nexit 1\n")
    assert bootstrap.main(["matrix"]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert says in message
    assert (machine.venv / "setup.log").read_text() == output
    (machine.venv / "bin/python").write_text(PIP)
    machine.becomes("matrix")


def test_a_debian_python_without_ensurepip_gets_its_package(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name))
    assert bootstrap.main(["inspect"]) == 3
    package = "python{}.{}-venv".format(*sys.version_info)
    assert package in machine.calls[1]
    assert f"even with {package}" in capsys.readouterr().err


def test_a_set_up_waits_for_another_and_not_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "LOCK_TIMEOUT_S", 0.0)
    handle = os.open(machine.root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert bootstrap.main(["matrix"]) == 3
    finally:
        os.close(handle)
    assert "another set-up" in capsys.readouterr().err
    machine.becomes("matrix")


def test_usage(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.main([]) == 2
    assert bootstrap.main(["--loads", "3"]) == 2
    assert "--loads" in capsys.readouterr().err
    assert bootstrap.main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("matrix", "test", "setup", "inspect", "doctor", "qemu-system-x86", ".venv"):
        assert word in out
    assert machine.calls == []


def test_an_old_python_is_told_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    assert bootstrap.main(["matrix"]) == 3
    assert "Python 3.11 or newer is needed" in capsys.readouterr().err


@pytest.mark.parametrize("module", [harness, errors, bootstrap])
def test_an_old_python_without_packages_can_read_it(module: object) -> None:
    file = getattr(module, "__file__", None)
    assert file is not None
    tree = ast.parse(Path(file).read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names | {"harness"}
            assert name in sys.stdlib_module_names | {"harness.errors", "collections.abc", "importlib.util"}
