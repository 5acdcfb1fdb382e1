# SPDX-License-Identifier: GPL-2.0-or-later
"""Known issues: what is excused, what is news, and how the file is written."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from made_cells import ended, made_cell

from harness.errors import ConfigError, UsageError
from harness.qemu.disturbance import Disturbance, Hindered
from harness.report.sentences import known_text
from harness.results.cause import Assertion
from harness.results.document import Cell, MatrixDoc, Qemu
from harness.results.known import Issue, NewsKind, add_known, annotate, load_known, version_matches
from harness.results.verdict import Verdict

NAME = "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
LINK = "https://example.org/issues/1"
LPC = "0000:00:1f.0/ICH9LPC"
EXPRESSION = "!subregion->container"


def cell(version: str = "7.2.22", verdict: Verdict = Verdict.CRASH, expression: str = EXPRESSION, **more: Any) -> Cell:
    qemu = Qemu(version=version, build="", path="/q", sha256="00")
    died = ended(assertion=Assertion(function="memory_region_add_subregion_common", expression=expression))
    usual: dict[str, Any] = {"record_qemu": qemu, "load_qemu": qemu, "sections": (LPC, "i8259")}
    if verdict is not Verdict.OK:
        usual |= {"causes": (died,), "blamed": (LPC,)}
    return made_cell(f"pc-q35-7.2/{more.pop('place', 'platform/bound/same')}", verdict, **{**usual, **more})


def doc(*cells: Cell) -> MatrixDoc:
    return MatrixDoc(
        command=(), started="2026-01-01T00:00:00Z", seconds=1.0, complete=True, host={}, machines=(), cells=cells
    )


def issue(**more: Any) -> Issue:
    return Issue(**{"signature": NAME, "affected": ("*",), "link": LINK, **more})


@pytest.mark.parametrize(
    ("pattern", "version", "matches"),
    [
        ("7.2", "7.2.22", True),
        ("7.2", "7.20.1", False),
        ("7.2.22", "7.2.21", False),
        ("8.*", "8.2.1", True),
        ("8.*", "9.0.0", False),
        ("*", "11.1.3", True),
        (">=5.2 <11.1", "5.2.0", True),
        (">=5.2 <11.1", "11.1.3", False),
        ("<=11.1", "11.1.3", True),
        (">=10", "9.2.0", False),
        (">= 7.2", "10.0.13", True),
        (">11.1", "11.1.3", False),
        (">11.1", "11.2.0", True),
        ("!=7.2", "7.2.22", False),
        (">=5.2, <7.2", "6.2.0", True),
        ("7.2.*", "7.2.22", True),
        ("7.2.22", "7.2", False),
    ],
)
def test_versions(pattern: str, version: str, matches: bool) -> None:
    assert version_matches(pattern, version) is matches


def test_a_known_failure_is_excused() -> None:
    seen = annotate(doc(cell()), [issue()])
    assert [c.known for c in seen.doc.cells] == [LINK]
    assert (seen.exit_code, seen.unknown, seen.news) == (0, (), ())
    assert "known: crash:memory_region" in known_text(seen)


def test_another_failure_in_the_same_cell_is_not() -> None:
    seen = annotate(doc(cell(expression="subregion->ram")), [issue()])
    assert seen.exit_code == 1
    assert seen.known == ()
    assert len(seen.unknown) == 1


def test_nor_is_one_in_a_version_that_nobody_knew_of() -> None:
    seen = annotate(doc(cell(), cell("10.0.13")), [issue(affected=("7.2",))])
    assert [bool(c.known) for c in seen.doc.cells] == [True, False]
    assert seen.exit_code == 1


def test_a_known_failure_that_does_not_come_is_news_and_no_failure() -> None:
    seen = annotate(doc(cell(verdict=Verdict.OK)), [issue()])
    assert [news.kind for news in seen.news] == [NewsKind.GONE]
    assert seen.exit_code == 0
    assert "gone: crash:memory_region" in known_text(seen)


@pytest.mark.parametrize(
    "other",
    [
        {"sections": ("i8259",)},
        {"verdict": Verdict.UNSUPPORTED},
        {"verdict": Verdict.HARNESS_ERROR},
        {"lane": "leak"},
        {"machine": "pc-i440fx-7.2"},
    ],
)
def test_it_is_not_gone_where_it_could_not_have_come(other: dict[str, Any]) -> None:
    verdict = other.pop("verdict", Verdict.OK)
    assert annotate(doc(cell(verdict=verdict, **other)), [issue()]).news == ()


def test_it_is_not_gone_when_only_another_schedule_was_run() -> None:
    passed = cell("11.1.3", Verdict.OK)
    wanted = issue(seen="platform/bound/back-to-back")
    assert annotate(doc(passed), [wanted]).news == ()
    both = doc(passed, cell("11.1.3", Verdict.OK, place="platform/bound/back-to-back"))
    assert [news.kind for news in annotate(both, [wanted]).news] == [NewsKind.GONE]


def test_it_is_not_gone_when_the_section_was_blamed_for_something_else() -> None:
    other = cell(expression="subregion->ram")
    assert annotate(doc(other, cell(verdict=Verdict.OK)), [issue()]).news == ()


def test_what_was_seen_with_a_parked_guest_names_its_device_too(tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    parked = cell(place="platform/bound/same/parked")
    assert add_known(path, parked, LINK)
    (added,) = load_known(path)
    assert added.seen == "platform/bound/same"
    assert annotate(doc(parked), [added]).known == (parked.id,)


def test_a_failure_that_is_known_for_other_versions_is_said_so_and_fails() -> None:
    seen = annotate(doc(cell("10.0.13")), [issue(affected=("7.2",))])
    assert [news.kind for news in seen.news] == [NewsKind.UNLISTED]
    assert (seen.exit_code, seen.known) == (1, ())
    (line,) = known_text(seen).splitlines()
    assert line.startswith("known for 7.2, and not listed for this version: crash:")


def test_a_failure_that_is_said_to_be_fixed_is_news_and_fails() -> None:
    seen = annotate(doc(cell("10.0.13")), [issue(fixed_in="10.0")])
    assert [news.kind for news in seen.news] == [NewsKind.FAILS_ALTHOUGH_FIXED]
    assert seen.exit_code == 1
    assert annotate(doc(cell("10.0.13", Verdict.OK)), [issue(fixed_in="10.0")]).news == ()


def test_behind_its_last_day_an_issue_is_news_and_fails() -> None:
    for until, excused in (("2025-12-31", False), ("2026-01-01", True)):
        seen = annotate(doc(cell()), [issue(until=until)])
        assert (seen.exit_code == 0, [news.kind for news in seen.news]) == (excused, [] if excused else [NewsKind.PAST])
        assert bool(seen.known) is excused
    longer = annotate(doc(cell()), [issue(until="2025-12-31"), issue(until="2026-02-01")])
    assert (longer.exit_code, longer.news) == (0, ())


def test_what_could_not_be_decided_is_not_excused() -> None:
    killed = Hindered(how=Disturbance.ENDED, signal="SIGKILL")
    assert annotate(doc(cell(), cell(verdict=Verdict.HOST, causes=(killed,))), [issue()]).exit_code == 3


def test_adding_keeps_comments_and_adds_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "known-issues.yaml"
    assert add_known(path, cell(), LINK, 'a "note": with signs')
    path.write_text(path.read_text() + "  # mine\n")
    assert not add_known(path, cell(), LINK)
    assert add_known(path, cell("10.0.13"), LINK)
    text = path.read_text()
    assert "# mine" in text
    assert text.startswith("# Known issues")
    first, second = load_known(path)
    assert (first.signature, first.affected, first.note) == (NAME, ("7.2.22",), 'a "note": with signs')
    assert second.affected == ("10.0.13",)
    assert first.seen == "platform/bound/same"
    assert annotate(doc(cell(), cell("10.0.13")), [first, second]).exit_code == 0


def test_adding_to_a_list_that_is_empty_or_stands_at_the_margin(tmp_path: Path) -> None:
    path = tmp_path / "known-issues.yaml"
    path.write_text("issues: []\n")
    assert add_known(path, cell(), LINK)
    path.write_text(f"issues:\n- signature: '{NAME}'\n  affected: [5.2]\n  link: {LINK}")
    assert add_known(path, cell(), LINK)
    assert [i.affected for i in load_known(path)] == [("5.2",), ("7.2.22",)]


def test_a_file_that_cannot_be_added_to_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "known-issues.yaml"
    text = f'issues: [{{signature: "{NAME}", affected: ["5.2"], link: "{LINK}"}}]\n'
    path.write_text(text)
    with pytest.raises(ConfigError, match="behind the last line"):
        add_known(path, cell(), LINK)
    assert path.read_text() == text


def test_a_cell_that_passed_and_a_link_that_is_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "known-issues.yaml"
    with pytest.raises(UsageError, match="no finding"):
        add_known(path, cell(verdict=Verdict.OK), LINK)
    with pytest.raises(UsageError, match="expected a URL"):
        add_known(path, cell(), "see the wiki")
    assert not path.exists()


def test_a_last_day_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "known-issues.yaml"
    assert add_known(path, cell(), LINK, until=date(2026, 3, 1))
    (read,) = load_known(path)
    assert read.until == date(2026, 3, 1)


@pytest.mark.parametrize(
    ("line", "wrong", "where"),
    [
        ("    affected: [newish]", "is no version", ":3:"),
        ("    affected: ['>=ten']", "is no version", ":3:"),
        ("    affected: ['8.*.1']", "is no version", ":3:"),
        ("    affected: ['']", "is no version", ":3:"),
        ("    affected: [7.2]\n    fixd_in: '8.0'", "fixd_in", ":4:"),
        ("    affected: []", "affected", ":3:"),
        ("    affected: [7.2]\n    fixed_in: soon", "is no version", ":4:"),
        ("    affected: [7.2]\n    until: soon", "date", ":4:"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, line: str, wrong: str, where: str) -> None:
    path = tmp_path / "known-issues.yaml"
    path.write_text(f"issues:\n  - signature: '{NAME}'\n{line}\n    link: {LINK}\n")
    with pytest.raises(ConfigError, match=wrong) as caught:
        load_known(path)
    assert where in str(caught.value)


OLD, NEW = (Qemu(version=version, build="", path="/q", sha256=version) for version in ("10.0.13", "11.1.3"))


def foreign(verdict: Verdict = Verdict.CRASH, record: Qemu = OLD) -> Cell:
    """The state of another QEMU."""
    return cell("11.1.3", verdict, record_qemu=record, load_qemu=NEW, place="platform/all/plain")


def test_what_guests_of_another_version_have_is_known_of_those_alone(tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    assert add_known(path, foreign(), LINK)
    assert not add_known(path, foreign(), LINK)
    (known,) = load_known(path)
    assert (known.affected, known.recorded) == (("11.1.3",), ("10.0.13",))
    older = Qemu(version="7.2.22", build="", path="/q", sha256="7")
    assert annotate(doc(foreign()), [known]).exit_code == 0
    assert annotate(doc(foreign(record=older)), [known]).exit_code == 1
    assert add_known(path, foreign(record=older), LINK)
    assert annotate(doc(foreign(record=older)), load_known(path)).exit_code == 0


def test_a_version_that_takes_its_own_state_is_not_news_about_that_of_another(tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    add_known(path, foreign(), LINK)
    known = load_known(path)
    assert annotate(doc(foreign(Verdict.OK, record=NEW)), known).news == ()
    assert [news.kind for news in annotate(doc(foreign(Verdict.OK)), known).news] == [NewsKind.GONE]
