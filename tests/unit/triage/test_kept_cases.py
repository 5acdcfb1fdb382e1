# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases and bundles in the folder of a run: found by signature, damaged ones passed over, packed the same each time."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from made_site import write_bundle

from harness.triage import kept
from harness.triage.kept import archive, case_in, kept_cases


def test_cases_are_found_by_signature_and_a_bundle_is_preferred(tmp_path: Path) -> None:
    write_bundle(tmp_path / "cases" / "one", "crash:a", sentence="small")
    write_bundle(tmp_path / "cases" / "two", "crash:b")
    write_bundle(tmp_path / "bundles" / "one", "crash:a")
    found = kept_cases(tmp_path)
    assert {name: case.is_bundle for name, case in found.items()} == {"crash:a": True, "crash:b": False}
    assert found["crash:a"].sentence == "one load of <ahci> is needed"
    assert found["crash:a"].sections == ("ich9_ahci",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"schema": "other/1"}',
        '{"schema": "postload.case/1"}',
        "\x00\xff",
        '{"schema": "postload.case/1", "signature": null}',
    ],
)
def test_what_is_damaged_or_of_another_kind_is_no_case(tmp_path: Path, text: str) -> None:
    write_bundle(tmp_path / "bundles" / "whole", "crash:a")
    (tmp_path / "bundles" / "broken").mkdir()
    (tmp_path / "bundles" / "broken" / "case.json").write_text(text, encoding="latin-1")
    assert list(kept_cases(tmp_path)) == ["crash:a"]
    assert case_in(tmp_path / "bundles" / "broken") is None


def test_a_folder_that_is_gone_has_none(tmp_path: Path) -> None:
    assert kept_cases(tmp_path / "gone") == {}
    assert case_in(tmp_path / "gone") is None


def test_an_archive_has_the_files_of_the_bundle_and_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    write_bundle(tmp_path / "one", "crash:a")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "one" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "one" / "folder").mkdir()
    case = case_in(tmp_path / "one")
    assert case is not None
    data = archive(case)
    assert data is not None
    assert data == archive(case)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["one/case.json", "one/reproduce.py"]
        reproduce = tar.extractfile("one/reproduce.py")
        assert reproduce is not None
        assert reproduce.read() == b"print('reproduced')\n"


def test_a_bundle_that_is_too_large_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "one", "crash:a")
    case = case_in(tmp_path / "one")
    assert case is not None
    monkeypatch.setattr(kept, "MOST_BYTES", 10)
    assert archive(case) is None
