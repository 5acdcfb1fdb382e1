# SPDX-License-Identifier: GPL-2.0-or-later
"""The static comparison, on dumps written by hand as ``-dump-vmstate`` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.packs.pack import StatePack
from harness.qualify.static import (
    SectionAtHand,
    StaticFinding,
    StaticState,
    Undescribed,
    check_sections,
    compare_descriptions,
    compare_static_dynamic,
    sections_at_hand,
)
from harness.report.reasons import static_difference_text, static_text


def field(name: str, size: int = 4, *, version: int = 0, maybe: bool = False, inside: Any = None) -> dict[str, Any]:
    made: dict[str, Any] = {"field": name, "version_id": version, "field_exists": maybe, "size": size}
    return made | ({"Description": inside} if inside else {})


def desc(name: str, *fields: dict[str, Any], version: int = 1, oldest: int = 1, subs: Any = ()) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "version_id": version, "minimum_version_id": oldest, "Fields": list(fields)}
    return made | ({"Subsections": list(subs)} if subs else {})


def dump(**types: dict[str, Any]) -> dict[str, Any]:
    entries = {
        name: {
            "Name": name,
            "version_id": d["version_id"],
            "minimum_version_id": d["minimum_version_id"],
            "Description": d,
        }
        for name, d in types.items()
    }
    return {"vmschkmachine": {"Name": "pc-i440fx-7.2"}, **entries}


def kinds(saved: dict[str, Any], loaded: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(d.kind, d.path, d.alarm) for d in compare_descriptions(saved, loaded)]


def test_alike() -> None:
    one = desc("dev", field("a"), field("b", 8), subs=[desc("dev/sub", field("c"))])
    assert kinds(one, one) == []


@pytest.mark.parametrize(
    ("loaded", "kind", "path"),
    [
        (desc("dev", field("a")), "removed", "dev/b"),
        (desc("dev", field("a"), field("new", 2), field("b", 8)), "added", "dev/new"),
        (desc("dev", field("a", 2), field("b", 8)), "size", "dev/a"),
        (desc("dev", field("a"), field("b", 8), version=3, oldest=2), "too-old", "dev"),
    ],
)
def test_one_difference(loaded: dict[str, Any], kind: str, path: str) -> None:
    assert kinds(desc("dev", field("a"), field("b", 8)), loaded) == [(kind, path, True)]


def test_saved_newer_than_known() -> None:
    (found,) = compare_descriptions(desc("dev", version=4), desc("dev", version=3))
    assert (found.kind, static_difference_text(found)) == (
        "too-new",
        "dev is saved as version 4, and the loading QEMU knows up to 3",
    )


def test_a_field_of_a_later_version_is_not_looked_for() -> None:
    old = desc("dev", field("a"))
    new = desc("dev", field("a"), field("b", version=2), version=2)
    assert kinds(old, new) == []
    assert [kind for kind, *_ in kinds(new, old)] == ["too-new", "removed"]


def test_a_rename_of_equal_size_is_no_alarm() -> None:
    old = desc("dev", field("a"), field("spare", 1), field("b"))
    assert kinds(old, desc("dev", field("a"), field("used_now", 1), field("b"))) == [("renamed", "dev/spare", False)]
    # two fields became one unused hole of both their sizes
    hole = desc("dev", field("unused", 5), field("b"))
    assert kinds(old, hole) == [("renamed", "dev/a", False)]
    other = desc("dev", field("a"), field("used_now", 2), field("b"))
    assert [kind for kind, *_ in kinds(old, other)] == ["removed", "added"]


def test_fields_that_changed_places() -> None:
    found = kinds(desc("dev", field("a"), field("b", 8)), desc("dev", field("b", 8), field("a")))
    assert found, "the bytes of a are read as b"
    assert all(alarm for *_, alarm in found)


def test_the_size_of_a_struct_says_nothing() -> None:
    old = desc("dev", field("parent", 2608, inside=desc("PCIDevice", field("config", 256))))
    new = desc("dev", field("parent", 2640, inside=desc("PCIDevice", field("config", 256))))
    assert kinds(old, new) == []
    deeper = desc("dev", field("parent", 2640, inside=desc("PCIDevice", field("config", 4096))))
    assert kinds(old, deeper) == [("size", "dev/parent:PCIDevice/config", True)]


def test_subsections() -> None:
    old = desc("dev", field("a"))
    new = desc("dev", field("a"), subs=[desc("dev/more", field("c"))])
    assert kinds(old, new) == []
    assert kinds(new, old) == [("subsection", "dev/dev/more", True)]


def test_a_field_under_a_condition_is_told_as_such() -> None:
    (found,) = compare_descriptions(desc("dev"), desc("dev", field("acpi_index", maybe=True)))
    assert "not always sent" in static_difference_text(found)


AT_HAND = (
    SectionAtHand(label="dev", vmsd="dev", open_coded=False, names=frozenset({"a"})),
    SectionAtHand(label="net", vmsd="virtio-net", open_coded=True),
    SectionAtHand(label="cpu", vmsd="cpu", open_coded=False),
    SectionAtHand(label="gone", vmsd="gone", open_coded=False),
)


def test_sections() -> None:
    saved = dump(dev=desc("dev", field("a"), subs=[desc("dev/ltim")]), gone=desc("gone"), other=desc("other"))
    loaded = dump(dev=desc("dev", field("a")), other=desc("other", version=9, oldest=9))
    found = check_sections(saved, loaded, AT_HAND)
    assert {label: f.state for label, f in found.items()} == {
        "dev": StaticState.ALARM,
        "net": StaticState.NOT_DESCRIBED,
        "cpu": StaticState.NOT_DESCRIBED,
        "gone": StaticState.ALARM,
    }
    assert [d.in_recording for d in found["dev"].differences] == [False]
    assert static_difference_text(found["dev"].differences[0]).endswith(" (not in the recording)")
    assert found["gone"].differences[0].kind == "type"
    there = SectionAtHand(label="dev", vmsd="dev", open_coded=False, names=frozenset({"dev/ltim"}))
    assert [d.in_recording for d in check_sections(saved, loaded, [there])["dev"].differences] == [True]


def test_a_type_that_keeps_its_name_and_not_its_vmstate() -> None:
    saved, loaded = dump(ps2=desc("ps2kbd", field("a"))), dump(ps2=desc("ps2-kbd", field("a")))
    section = SectionAtHand(label="ps2kbd", vmsd="ps2kbd", open_coded=False)
    assert check_sections(saved, loaded, [section])["ps2kbd"].state is StaticState.CLEAN


def test_types_that_share_a_vmstate_are_compared_with_themselves() -> None:
    saved = dump(one=desc("dev", field("a")), two=desc("dev", field("b")))
    assert check_sections(saved, saved, AT_HAND[:1])["dev"].state is StaticState.CLEAN
    loaded = dump(one=desc("dev", field("a")), two=desc("dev", field("b", 8)))
    assert check_sections(saved, loaded, AT_HAND[:1])["dev"].state is StaticState.ALARM


def test_sections_of_a_recording(make_pack: Callable[..., Path]) -> None:
    with StatePack(make_pack()) as pack:
        found = {s.label: s for s in sections_at_hand(pack.recordings["bound"])}
    assert found["cpu"].names == {"env.eip", "env.eflags"}
    assert found["0000:00:04.0/virtio-blk"].open_coded
    assert not found["i8259#1"].open_coded


def finding(section: str, state: StaticState) -> StaticFinding:
    saved, loaded = desc("dev", field("a")), desc("dev", field("a", 2))
    differences = tuple(compare_descriptions(saved, loaded)) if state is StaticState.ALARM else ()
    why = Undescribed.OPEN_CODED if state is StaticState.NOT_DESCRIBED else None
    return StaticFinding(section=section, state=state, differences=differences, undescribed=why)


@pytest.mark.parametrize(
    ("state", "passed", "said"),
    [
        (
            StaticState.ALARM,
            True,
            "the load passes, though -dump-vmstate of both builds says that it can fail: x (field dev/a has 4 bytes",
        ),
        (StaticState.CLEAN, False, "the load fails, though -dump-vmstate of both builds shows no difference: x"),
        (
            StaticState.NOT_DESCRIBED,
            False,
            "the load fails, and -dump-vmstate does not describe the section: x (its code",
        ),
        (StaticState.ALARM, False, ""),
        (StaticState.CLEAN, True, ""),
        (StaticState.ALARM, None, ""),
        (StaticState.NOT_DESCRIBED, True, ""),
    ],
)
def test_static_against_dynamic(state: StaticState, passed: bool | None, said: str) -> None:
    notes = compare_static_dynamic({"x": finding("x", state)}, {"x": passed})
    assert len(notes) == bool(said)
    assert all(static_text(note).startswith(said) for note in notes)
