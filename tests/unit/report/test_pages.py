# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of a made history: what they answer, that their links lead somewhere, that foreign names are defused."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_cells import QEMU
from made_runs import crashed, events, judged, started, write_run
from made_site import (
    BACK,
    GONE,
    HOSTILE,
    LINK,
    NEW,
    NIGHTS,
    STILL,
    UNJUDGED,
    make_history,
    make_site,
    signature,
    write_bundle,
)

from harness.errors import HostError, NothingToRun, UsageError
from harness.report.pages import device_page, is_link, natural, run_page, signature_page, slug
from harness.store.engine import open_store
from harness.store.keep import put_excuses, put_reproduction
from harness.store.read import History
from harness.store.states import Excuse, ExcuseKind, Reproduced


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("history")
    make_history(str(folder / "history.db"), folder)
    return str(folder / "history.db")


@pytest.fixture(scope="module")
def site(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "site"
    make_site(store, out)
    return out


class Page(HTMLParser):
    """Links, ids, tags and the text of each question of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, name: str) -> Iterator[str]:
        return (value for _, attributes in self.tags if (value := attributes.get(name)) is not None)


def read(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def question(site: Path, anchor: str) -> str:
    """The text of one of the four answers."""
    found = re.search(rf'<section [^>]*id="{anchor}".*?</section>', read(site, "index.html"), re.DOTALL)
    assert found
    return found.group()


def pages_of(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


@pytest.mark.parametrize(
    ("anchor", "words", "count"), [("new", NEW, 1), ("back", BACK, 1), ("gone", GONE, 1), ("not-run", UNJUDGED, 1)]
)
def test_each_question_of_a_morning_has_its_answer(site: Path, anchor: str, words: str, count: int) -> None:
    text = question(site, anchor)
    assert words in text
    assert f'<span class="count">{count}</span>' in text
    assert STILL not in text


def test_what_is_gone_is_fixed_only_where_its_reproducer_says_so(tmp_path: Path) -> None:
    make_history(str(tmp_path / "h.db"), tmp_path)
    make_site(str(tmp_path / "h.db"), tmp_path / "site")
    assert "not seen again" in question(tmp_path / "site", "gone")
    engine = open_store(str(tmp_path / "h.db"))
    newer = replace(QEMU, version="7.2.23", label="7.2.23", sha256="ff" * 32)
    for qemu in (QEMU, newer):  # the first has shown it, so that its signature is fixed in the other one alone
        at = "2026-02-01T00:00:00+00:00"
        put_reproduction(engine, signature=signature(GONE), qemu=qemu, answer=Reproduced.GONE, at=at)
    engine.dispose()
    make_site(str(tmp_path / "h.db"), tmp_path / "site")
    assert "fixed: its reproducer says so" in question(tmp_path / "site", "gone")
    text = read(tmp_path / "site", signature_page(signature(GONE)))
    assert "state-fixed-in" in text
    assert ">gone</td>" in text


def test_the_questions_come_before_all_else(site: Path) -> None:
    text = read(site, "index.html")
    places = [text.index(f'id="{anchor}"') for anchor in ("new", "back", "gone", "not-run", "devices")]
    assert places == sorted(places)
    assert "2 findings still there" in text


def test_a_cell_that_was_not_judged_makes_no_device_ok(site: Path) -> None:
    row = re.search(r'<tr data-ok="(.)" data-worst="(.*?)"><th scope="row"><a [^>]*>e1000<', read(site, "index.html"))
    assert row
    assert row.groups() == ("1", "ok")
    (run,) = re.findall(r"<h2>What is not ok.*?<h2>", read(site, run_page(f"night-{NIGHTS - 1}")), re.DOTALL)
    assert "not judged" in run
    assert UNJUDGED in run


def test_there_is_a_page_for_each_device_signature_and_run(site: Path) -> None:
    devices = ("ahci", "nvme", "virtio-blk", "e1000", "sdhci-pci", "platform", HOSTILE)
    names = [device_page(name) for name in devices]
    names += [signature_page(signature(words)) for words in (NEW, BACK, GONE, STILL, HOSTILE)]
    names += [run_page(f"night-{night}") for night in range(NIGHTS)]
    names += ["index.html", "signatures.html", "runs.html", "speeds.html"]
    assert {str(page.relative_to(site)) for page in pages_of(site)} == set(names)


def test_every_link_leads_to_a_page_or_a_place_in_it(site: Path) -> None:
    seen = 0
    for path in pages_of(site):
        page = Page(path.read_text(encoding="utf-8"))
        for link in page.values("href"):
            if link != LINK:
                name, _, anchor = link.partition("#")
                target = (path.parent / name).resolve() if name else path
                assert target.is_file(), f"{path}: {link}"
                assert not anchor or anchor in Page(target.read_text(encoding="utf-8")).values("id"), f"{path}: {link}"
                seen += 1
    assert seen > 200


def test_every_page_can_be_come_to(site: Path) -> None:
    seen: set[Path] = set()
    ahead = [site / "index.html"]
    while ahead:
        path = ahead.pop()
        if path in seen or path.suffix != ".html":
            continue
        seen.add(path)
        links = Page(path.read_text(encoding="utf-8")).values("href")
        ahead += [(path.parent / link.partition("#")[0]).resolve() for link in links if link != LINK and link[0] != "#"]
    assert seen == set(pages_of(site))


def test_nothing_is_loaded_from_elsewhere_and_ids_are_unique(site: Path) -> None:
    for path in pages_of(site):
        page = Page(path.read_text(encoding="utf-8"))
        ids = list(page.values("id"))
        assert len(ids) == len(set(ids))
        assert all(not source.startswith(("http", "//")) for source in page.values("src"))
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert "style" not in {name for _, attributes in page.tags for name in attributes}


def test_foreign_names_are_text_and_no_path(site: Path) -> None:
    for path in pages_of(site):
        text = path.read_text(encoding="utf-8")
        assert "<img" not in text
        assert "alert(2)</script>" not in text
    assert "&lt;img src=x" in read(site, "index.html")
    assert "&lt;script&gt;alert(2)" in read(site, signature_page(signature(NEW)))


def test_a_signature_has_its_story(site: Path) -> None:
    text = read(site, signature_page(signature(BACK)))
    assert 'seen first</dt><dd><time datetime="2026-01-02T22:00:00+00:00">' in text
    assert 'href="../runs/night-1.html"' in text
    assert "2 of the last 5 runs" in text
    assert re.search(r"40 %, 99 % interval \d+ to \d+ %", text)
    assert f'<a href="{LINK}"' in read(site, signature_page(signature(STILL)))
    assert "state-known" in read(site, signature_page(signature(STILL)))


def test_a_bundle_can_be_downloaded_and_its_case_is_told(site: Path) -> None:
    text = read(site, signature_page(signature(NEW)))
    assert "one load of &lt;ahci&gt; is needed" in text
    (link,) = re.findall(r'class="download" href="\.\./(.*?)"', text)
    with tarfile.open(site / link) as tar:
        assert tar.getnames() == ["one/case.json", "one/reproduce.py"]
    assert 'class="download"' not in read(site, signature_page(signature(GONE)))


def test_speeds_are_drawn_and_said(site: Path) -> None:
    text = read(site, device_page("ahci"))
    assert '<svg class="curve"' in text
    assert "1,504 loads/s in the newest of 5 nights" in text
    assert ">15<" in text  # the ratio to the machine's 100


def test_the_same_history_gives_the_same_pages(store: str, site: Path, tmp_path: Path) -> None:
    make_site(store, tmp_path / "again")
    for path in (path for path in site.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(site)).read_bytes()


def test_the_last_run_can_be_held_against_another_one(store: str, tmp_path: Path) -> None:
    make_site(store, tmp_path / "site", "--against", "night-1", "--last", "2")
    text = read(tmp_path / "site", "index.html")
    assert 'Held against <a class="mono" href="runs/night-1.html">' in text
    assert BACK not in question(tmp_path / "site", "back")
    assert "The last 2 nights" in text


def test_the_first_run_of_a_history_is_told_as_such(tmp_path: Path) -> None:
    store = str(tmp_path / "one.db")
    engine = open_store(store, create=True)
    write_run(engine, started(), events([crashed(words=NEW)]))
    engine.dispose()
    make_site(store, tmp_path / "site")
    text = read(tmp_path / "site", "index.html")
    assert "This is the first run of the history" in text
    assert signature(NEW) in text.replace("&gt;", ">")


@pytest.mark.parametrize("planned", [(), ("7.2.22/pc-q35-7.2/ahci/bound/same",)])
def test_a_night_that_judged_nothing_is_not_green(tmp_path: Path, planned: tuple[str, ...]) -> None:
    store = str(tmp_path / "empty.db")
    engine = open_store(store, create=True)
    write_run(engine, started(0), events([judged()]))
    write_run(engine, started(1), events([], planned, complete=False))
    engine.dispose()
    make_site(store, tmp_path / "site")
    text = read(tmp_path / "site", "index.html")
    assert "This run judged nothing. It is not green." in text
    assert "This run was stopped" in text
    assert '<span class="count">1</span>' in question(tmp_path / "site", "not-run")


def test_a_history_without_runs_has_no_pages(tmp_path: Path) -> None:
    open_store(str(tmp_path / "none.db"), create=True).dispose()
    with pytest.raises(NothingToRun, match="no runs yet"):
        make_site(str(tmp_path / "none.db"), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_what_somebody_else_put_there_is_not_replaced(store: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="new, empty, or was written by postload pages"):
        make_site(store, tmp_path)
    with pytest.raises(UsageError, match="new, empty"):
        make_site(store, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_pages_are_replaced_as_a_whole_and_nothing_is_left(store: str, tmp_path: Path) -> None:
    out = tmp_path / "www" / "site"
    make_site(store, out)
    (out / "left.html").touch()
    before = out.stat().st_ino
    make_site(store, out)
    assert out.stat().st_ino != before
    assert not (out / "left.html").exists()
    assert [path.name for path in out.parent.iterdir()] == ["site"]


def test_a_link_at_the_place_stays_a_link(store: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "site").symlink_to("real")
    make_site(store, tmp_path / "site")
    assert (tmp_path / "site").is_symlink()
    assert (tmp_path / "real" / "index.html").is_file()


def test_a_folder_that_cannot_be_made_is_told(store: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot write"):
        make_site(store, tmp_path / "file" / "site")


def test_a_bundle_of_a_folder_that_another_host_named_is_not_given_away(tmp_path: Path) -> None:
    store = str(tmp_path / "h.db")
    engine = open_store(store, create=True)
    write_run(engine, started(host={"name": "elsewhere"}), events([crashed(words=NEW)]))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE runs SET folder = '{tmp_path / 'run'}'")
    engine.dispose()
    write_bundle(tmp_path / "run" / "bundles" / "one", signature(NEW))
    make_site(store, tmp_path / "site")
    assert list((tmp_path / "site" / "bundles").iterdir()) == []


@pytest.mark.parametrize("name", ["ahci", "virtio-blk", "usb-kbd+hub", "20261127-145115-a7697f"])
def test_a_plain_name_is_its_own_file(name: str) -> None:
    assert slug(name) == name


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "", "..", ".hidden", "a b", "a/b", "é", "x" * 300, "a\0b", "a%2e"]
)
def test_any_other_name_is_a_plain_file_too(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,80}-[0-9a-f]{12}", slug(name))


def test_different_names_are_different_files() -> None:
    assert len({slug(name) for name in ("a b", "a-b", "a  b", "a/b", "A b")}) == 5


def test_versions_are_sorted_as_people_do() -> None:
    names = ["10.0", "7.2>10.0", "5.2", "7.2", "mybuild", "11.1"]
    assert sorted(names, key=natural) == ["mybuild", "5.2", "7.2", "7.2>10.0", "10.0", "11.1"]


@pytest.mark.parametrize(
    ("url", "fine"), [(LINK, True), ("http://x/1", True), ("javascript:alert(1)", False), ("mailto:a", False)]
)
def test_only_links_of_the_web_are_followed(url: str, fine: bool) -> None:
    assert is_link(url) is fine


def test_what_does_not_count_is_shown_as_such(tmp_path: Path) -> None:
    store, line, day = str(tmp_path / "history.db"), "7.2/pc-q35-7.2/ahci/{}/same", date(2026, 3, 1)
    engine = open_store(store, create=True)
    known = [{"signature": signature(STILL), "link": LINK, "affected": ["7.2"], "until": f"{day}"}]
    for night, words in enumerate((None, "kept out")):
        cells = [crashed("pc-q35-7.2/nvme/bound/same", STILL)]
        cells += [crashed(f"pc-q35-7.2/ahci/{phase}/same", words) if words else judged() for phase in ("bound", "busy")]
        write_run(engine, started(night, known=known), events(cells))
    history = History(engine)
    out = Excuse(kind=ExcuseKind.QUARANTINED, line=line.format("bound"), signature=signature("kept out"), link=LINK)
    once = Excuse(kind=ExcuseKind.ONCE, line=line.format("busy"), signature=signature("kept out"))
    put_excuses(engine, history.run("last"), [replace(out, until=day), once])
    engine.dispose()
    make_site(store, tmp_path / "site")
    start = plain(tmp_path / "site/index.html")
    assert "What is new? 0" in start
    assert f"quarantined until {day}: {LINK}, came once, and not when it was tried again" in start
    assert f"known: {LINK}, until {day}" in plain(tmp_path / "site" / run_page("night-1"))
    assert f"quarantined until {day}: {LINK}" in plain(tmp_path / "site" / run_page("night-1"))
    assert "quarantined" not in plain(tmp_path / "site" / run_page("night-0"))
    assert f"{LINK}, until {day}" in plain(tmp_path / "site" / signature_page(signature(STILL)))


def plain(page: Path) -> str:
    """The words of a page."""
    return " ".join(re.sub(r"<[^>]*>", " ", page.read_text()).split()).replace(" ,", ",")
