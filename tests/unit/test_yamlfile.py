# SPDX-License-Identifier: GPL-2.0-or-later
"""YAML into models: what is taken, and where each mistake is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from harness.errors import ConfigError
from harness.yamlfile import line_of, load_model


class Disk(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str
    size_mib: int = 1


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = ""
    count: int = 0
    flag: bool = False
    ratio: float = 0.0
    either: str | int = ""
    words: tuple[str, ...] = ()
    where: Path | None = None
    disks: list[Disk] = []
    by_name: dict[str, Disk] = {}


def load(tmp_path: Path, text: str | bytes) -> Model:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_model(path, Model)


@pytest.mark.parametrize(
    "text", ["52:54:00:12:34:56", "on", "off", "yes", "no", "9.10", "1e3", "0123", "2001-01-01", "0x10"]
)
def test_a_string_is_taken_as_it_is_written(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"name: {text}\nwords: [{text}]").words == (text,)
    assert load(tmp_path, f"name: {text}").name == text


def test_numbers_booleans_null_and_quotes(tmp_path: Path) -> None:
    model = load(tmp_path, "count: 0x10\nflag: true\nratio: 9.5\nwhere: ~\nwords: ['1', \"true\"]\neither: 7\n")
    assert (model.count, model.flag, model.ratio, model.where) == (16, True, 9.5, None)
    assert model.words == ("1", "true")
    assert model.either == 7


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("name: a\ncount: 1\nname: b\n", 3, 1, "given twice; it stands on line 1"),
        ("disks:\n  - path: a\n    path: b\n", 3, 5, "given twice"),
        ("name: a\nconut: 1\n", 2, 1, "did you mean 'count'?"),
        ("disks:\n  - path: a\n    size_mb: 3\n", 3, 5, "did you mean 'size_mib'?"),
        ("by_name:\n  x: {path: a, paht: b}\n", 2, 16, "did you mean 'path'?"),
        ("zzzzzz: 1\n", 1, 1, "known here: by_name, count"),
        ("count: many\n", 1, 8, "expected a valid integer, found 'many'"),
        ("name: a\nflag:  yes\n", 2, 8, "expected a valid boolean, found 'yes'"),
        ("count: '1'\n", 1, 8, "expected a valid integer"),
        ("name: true\n", 1, 7, "expected a valid string, found 'true'"),
        ("name:\n", 1, 6, "found nothing"),
        ("disks:\n  - size_mib: 3\n", 2, 5, "key 'path' is missing"),
        ("disks:\n  - {path: a}\n  - 7\n", 3, 5, "disks.1"),
        ("name: [a]\n", 1, 7, "found a list"),
        ("name: a\n\tcount: 1\n", 2, 1, "use spaces"),
        ("name: [a\ncount: 1\n", 2, 6, "not YAML"),
        ("name: 'a\n", 2, 1, "not YAML"),
        ("name: !!python/object:os.system a\n", 1, 7, "tag"),
        ("- a\n", 1, 1, "found a list"),
        ("just words\n", 1, 1, "expected a mapping"),
        ("", 1, 1, "empty"),
        ("# nothing\n", 1, 1, "empty"),
        ("name: a\n---\nname: b\n", 2, 1, "not YAML"),
        ("name: a\nwords: &w [*w]\n", 1, 1, "alias"),
        ("name: a\n? [b]\n: c\n", 2, 3, "expected a word as key"),
        (b"name: a\nwords: [\xff]\n", 2, 9, "UTF-8"),
        ("name: a\nwords: [\x01]\n", 2, 9, "control character"),
    ],
)
def test_a_mistake_has_line_and_column(tmp_path: Path, text: str | bytes, line: int, column: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"{tmp_path}/file.yaml:{line}:{column}: ")


def test_the_first_of_several_mistakes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":2:8: .*1 more after it") as caught:
        load(tmp_path, "name: a\ncount: x\nflag: x\n")
    assert caught.value.line == 2


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="too large"):
        load(tmp_path, "\n".join(rows))


def test_deep_nesting_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, "name: " + "[" * 20000)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model(tmp_path / "none.yaml", Model)


def test_the_line_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: x\nguest:\n  bind: y\n  life: z\n")
    assert line_of(tmp_path / "a.yaml", ("name",)) == 1
    assert line_of(tmp_path / "a.yaml", ("guest", "life")) == 4
    # one that is not there: the last before it that is
    assert line_of(tmp_path / "a.yaml", ("guest", "busy")) == 2
