# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of QEMUs, their launchers, and how a name becomes a program."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.arch import X86_64
from harness.errors import HostError, UsageError
from harness.files import sha256_file
from harness.qemu.binary import PROBE_SCHEMA, find_binary, host_binary, probe_binary
from harness.qemu.installed import (
    Installed,
    check_name,
    entries,
    entry,
    launched,
    launcher_text,
    qemus_folder,
    register,
    remove,
    write_launcher,
)

SAYS = "#!/bin/sh\necho 'QEMU emulator version 10.0.13 (Debian 1:10.0.13)'\n"
Name = Callable[..., Installed]


@pytest.fixture
def named(own_cache: Path, tmp_path: Path) -> Name:
    """Gives a script a name, as the installation of a build does."""

    def make(name: str, *, sha256: str | None = None, folder: str = "", program: Path | None = None) -> Installed:
        where = qemus_folder() / (folder or f"{name}-1234")
        where.mkdir(parents=True, exist_ok=True)
        if program is None:
            program = tmp_path / f"{name}.sh"
            program.write_text(SAYS)
            program.chmod(0o755)
        text = launcher_text(program, [], modules=None, clean=False, env={})
        write_launcher(where, text, program=program, sha256=sha256, key=where.name)
        made = Installed(
            name=name,
            kind="path",
            version="10.0.13",
            build="Debian",
            source=str(program),
            program=str(program),
            sha256=sha256 or sha256_file(program),
            folder=str(where),
            datadirs=("/a", "/b"),
            env={"A": "b c"},
        )
        register(made)
        return made

    return make


def test_a_name_is_kept_as_it_was_given(named: Name) -> None:
    made = named("asan")
    assert entry("asan") == made
    assert [each.name for each in entries()] == ["asan"]
    assert entry("other") is None
    assert entry("../names/asan") is None


def test_keys_of_later_versions_are_left_out_and_damage_hides_a_name(named: Name) -> None:
    made = named("asan")
    path = qemus_folder() / "names" / "asan.json"
    path.write_text(json.dumps({**made.to_json(), "later": 1}))
    assert entry("asan") == made
    for text in (
        "{",
        "[]",
        json.dumps({**made.to_json(), "schema": "postload.qemu/9"}),
        '{"schema": "postload.qemu/1"}',
    ):
        path.write_text(text)
        assert entries() == []


@pytest.mark.parametrize("name", ["", "-x", ".hidden", "a/b", "a b", "a,b", "a..b", "x" * 41, "ä", "a=b", "a\n"])
def test_names_that_would_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected letters"):
        check_name(name)


@pytest.mark.parametrize("name", ["10.0", "qemu-system-x86_64", "names", "qemu"])
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        check_name(name, reserved=["10.0"])


@pytest.mark.parametrize("name", ["a", "asan", "10.0-own", "v9.2_rc1+x", "A" * 40])
def test_names(name: str) -> None:
    check_name(name, reserved=["10.0"])


def test_a_name_stands_for_its_launcher_before_any_program_of_that_name(
    named: Name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = named("asan")
    there = tmp_path / "asan"
    there.write_text(SAYS)
    there.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_binary("asan") == made.launcher
    monkeypatch.setenv("POSTLOAD_QEMU", "asan")
    assert host_binary(X86_64.program) == made.launcher
    assert find_binary(str(there)) == there


def test_an_unknown_name_is_answered_with_the_known_ones(named: Name) -> None:
    named("asan")
    with pytest.raises(UsageError, match=r"installed: asan\); postload qemu install 11.1$"):
        find_binary("11.1")
    with pytest.raises(UsageError, match=r"postload qemu install mine=PATH$"):
        find_binary("mine")


def test_a_build_that_went_away_is_named(named: Name) -> None:
    made = named("asan")
    Path(made.program).unlink()
    with pytest.raises(UsageError, match="which is not there: postload qemu install asan=PATH"):
        find_binary("asan")
    with pytest.raises(UsageError, match="not there any more"):
        launched(made.launcher)


def test_a_launcher_is_known_by_the_program_that_it_starts(named: Name, tmp_path: Path) -> None:
    packaged = launched(named("packaged", sha256="ab" * 32).launcher)
    assert (packaged.sha256, packaged.key) == ("ab" * 32, "packaged-1234")
    own = named("own")
    before = launched(own.launcher).sha256
    Path(own.program).write_text(SAYS + "# built again\n")
    assert before == own.sha256
    assert launched(own.launcher).sha256 == sha256_file(Path(own.program)) != before
    plain = tmp_path / "qemu"
    plain.write_text(SAYS)
    assert launched(plain).program == plain
    assert launched(plain).key == ""


def test_a_damaged_launcher_says_so(named: Name) -> None:
    made = named("asan")
    (Path(made.folder) / "launcher.json").write_text('{"schema": "other"}')
    with pytest.raises(HostError, match="install this QEMU again"):
        launched(made.launcher)


def test_answers_of_one_program_with_other_modules_are_kept_apart(named: Name, own_cache: Path) -> None:
    """The same package on the host and installed here has one hash, and may have other modules."""
    digest = "ab" * 32
    made = named("packaged", sha256=digest)
    answers = {"target": "x86_64", "machines": [], "devices": {"qxl": True}, "capabilities": []}
    folder = own_cache / "probe"
    folder.mkdir(parents=True)
    (folder / f"{digest}-packaged-1234-{PROBE_SCHEMA}.json").write_text(json.dumps(answers))
    (folder / f"{digest}-{PROBE_SCHEMA}.json").write_text(json.dumps({**answers, "devices": {"qxl": False}}))
    found = probe_binary(made.launcher, ["qxl"])
    assert found.devices == {"qxl"}
    assert (found.sha256, found.path, found.version) == (digest, str(made.launcher), "10.0.13")


def test_a_launcher_becomes_the_program(tmp_path: Path) -> None:
    program = tmp_path / "it's here"
    program.write_text('#!/bin/sh\necho "$$|$KEY|$QEMU_MODULE_DIR|${LD_PRELOAD-unset}|$*"\n')
    program.chmod(0o755)
    text = launcher_text(
        program, [tmp_path / "a b", Path("/c")], modules=Path("/m"), clean=True, env={"KEY": "it's $HOME; `x`\n2"}
    )
    write_launcher(tmp_path, text, program=program, sha256=None, key="k")
    child = subprocess.Popen(
        [tmp_path / "qemu", "-S", "x y"], stdout=subprocess.PIPE, text=True, env={**os.environ, "LD_PRELOAD": ""}
    )
    out, _ = child.communicate(timeout=20)
    assert out == f"{child.pid}|it's $HOME; `x`\n2|/m|unset|-L {tmp_path}/a b -L /c -S x y\n"


def test_a_variable_must_have_a_name() -> None:
    with pytest.raises(UsageError, match="not the name of a variable: 'A-B'"):
        launcher_text(Path("/x"), [], modules=None, clean=False, env={"A-B": "1"})


def test_removing_takes_the_folder_and_never_the_users_files(named: Name) -> None:
    made = named("asan")
    assert remove("asan") == made
    assert entries() == []
    assert not Path(made.folder).exists()
    assert Path(made.program).read_text() == SAYS
    assert [path.name for path in qemus_folder().iterdir()] == ["names"]
    with pytest.raises(UsageError, match="'asan' is installed; installed: none"):
        remove("asan")


def test_a_folder_that_another_name_uses_stays(named: Name) -> None:
    first, _ = named("first", folder="shared"), named("second", folder="shared")
    inside = named("third", program=first.launcher)
    remove("first")
    remove("second")
    assert first.launcher.is_file()
    remove("third")
    assert not Path(inside.folder).exists()


def test_a_folder_outside_of_the_cache_is_never_removed(named: Name, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    made = named("asan")
    path = qemus_folder() / "names" / "asan.json"
    path.write_text(json.dumps({**made.to_json(), "folder": str(precious)}))
    remove("asan")
    assert precious.is_dir()


def test_a_name_given_again_drops_its_old_folder(named: Name) -> None:
    old = named("asan", folder="asan-old")
    new = named("asan", folder="asan-new")
    assert entry("asan") == new
    assert not Path(old.folder).exists()
    assert new.launcher.is_file()
