# SPDX-License-Identifier: GPL-2.0-or-later
"""Names in a foreign stream are shown, and steer no terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.text import Text

from harness import cli
from harness.report.console import SafeConsole

from .build import OLD, full, head, ram_start, vmdesc

#: What a terminal obeys (title, clearing), and what rich would take for its markup.
STEERING = "a\x1b]0;title\x07\x1b[2J[bold]\x00b"
SPELLED = "a\\x1b]0;title\\x07\\x1b[2J[bold]\\x00b"
Said = tuple[str | int | None, str, str]
STEERERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A stream whose machine, section and field have such names."""
    name = STEERING.encode()
    described = {**OLD, "name": STEERING, "fields": [{"name": STEERING, "size": 4, "type": STEERING}]}
    path = tmp_path / "odd.stream"
    path.write_bytes(head(name) + ram_start() + full(9, name, 0, 1, b"data") + b"\0" + vmdesc(described))
    return path


def inspected(section: str, odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr("sys.argv", ["postload", "inspect", str(odd), "--section", section])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, *capsys.readouterr()


def test_names_are_spelled_out(odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = inspected("title", odd, capsys, monkeypatch)
    assert (code, err) == (0, "")
    assert f"machine: {SPELLED}" in out
    assert f"{SPELLED} v1" in out
    assert f"{SPELLED}: {SPELLED}" in out
    assert not STEERERS.search(out)


def test_an_error_that_quotes_names_spells_them_out(
    odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = inspected("nosuch", odd, capsys, monkeypatch)
    assert (code, out) == (2, "")
    assert f"no section 'nosuch'; there are ram, {SPELLED}" in err
    assert not STEERERS.search(err)


def test_a_console_keeps_its_own_colours() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, color_system="standard", width=80)
    console.print(Text("x\x1b[2Jy\x9b31m\u202e", style="red"))
    assert file.getvalue().rstrip() == "\x1b[31mx\\x1b[2Jy\\x9b31m\\u202e\x1b[0m"


def test_no_console_but_the_safe_one_is_made() -> None:
    """A console of rich's own would send what it is given to the terminal."""
    harness = Path(__file__).parents[3] / "harness"
    made = [
        path.name
        for folder in ("commands", "report")
        for path in sorted((harness / folder).rglob("*.py"))
        if re.search(r"(?<!Safe)\bConsole\((?!Console\))", path.read_text())
    ]
    assert made == []
