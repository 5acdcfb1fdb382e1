# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/findings.md: its signatures are such, its devices are there, and its lines can be typed."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest

from harness.cli import cli
from harness.devices.derive import derive_all
from harness.devices.recipe import load_recipes
from harness.devices.rules import load_rules
from harness.devices.types import parse_help, with_properties
from harness.qemu.versions import load_versions
from harness.results.verdict import FailureClass, Verdict

PAGE = (Path(__file__).parents[3] / "docs" / "findings.md").read_text(encoding="utf-8")
RECORDED = Path(__file__).with_name("recorded")
#: Each finding by its title.
FINDINGS: dict[str, str] = dict(re.findall(r"^### (.+)\n((?:(?!^#).*\n)*)", PAGE, re.MULTILINE))
TITLES = pytest.mark.parametrize("title", FINDINGS)


def items(title: str) -> dict[str, str]:
    """What is said of a finding, by the word in front."""
    text = FINDINGS[title].replace("\n  ", " ")
    return dict(re.findall(r"^- ([^:]+): (.+)$", text, re.MULTILINE))


def quoted(title: str, item: str) -> list[str]:
    return re.findall("`(.+?)`", items(title).get(item, ""))


@cache
def devices_of(version: str) -> frozenset[str]:
    """Every name that ``--device`` can mean on a QEMU, and every type."""
    said = json.loads(gzip.decompress((RECORDED / f"{version}.json.gz").read_bytes()))
    types = with_properties(parse_help(said["help"]), said["properties"])
    recipes = load_recipes().devices
    derived = derive_all(types, load_rules(), [device for device in recipes.values() if not device.rest])
    return frozenset({*types, *derived.devices, *recipes})


def lines(title: str) -> list[str]:
    return [text for item in items(title) if item.startswith("Shows it") for text in quoted(title, item)]


def test_there_are_findings() -> None:
    assert len(FINDINGS) >= 10


@TITLES
def test_it_says_everything(title: str) -> None:
    said = items(title)
    assert {"Versions", "Smallest case", "Shows it", "Upstream"} <= said.keys()
    assert {"Device", "Devices"} & said.keys()
    assert set(quoted(title, "Class")) <= set(map(str, FailureClass))
    assert "CLASS" not in FINDINGS[title]


@TITLES
def test_a_signature_has_kind_section_and_family(title: str) -> None:
    for name in quoted(title, "Signature"):
        kind, *rest = name.split(":")
        assert Verdict(kind).is_finding
        assert len(rest) >= 4
        assert all(rest)
        assert rest[-1] in ("pc", "q35", "virt")


@TITLES
def test_each_line_can_be_typed(title: str) -> None:
    """And it judges the devices of the finding, on a machine of the signature and a QEMU that can be installed."""
    assert lines(title)
    for line in lines(title):
        program, name, *words = shlex.split(line)
        assert program == "postload"
        parent = cli.make_context("postload", [], resilient_parsing=True)
        context = parsed(cli, name, words, parent)
        said = context.params
        qemu = said.get("qemu") or " ".join(said["qemus"])
        assert qemu in load_versions().versions
        named = {*quoted(title, "Device"), *quoted(title, "Devices")}
        meant = set(said.get("devices") or (said["name"],))
        assert meant <= named <= devices_of(qemu.removesuffix("-aarch64"))
        assert {signature.rpartition(":")[2] for signature in quoted(title, "Signature")} <= set(
            said.get("machines", ())
        )


def parsed(group: click.Group, name: str, words: list[str], parent: click.Context) -> click.Context:
    """The context of a command that is not carried out.

    :raises click.UsageError: the line cannot be typed
    """
    command = group.get_command(parent, name)
    assert command is not None, name
    if isinstance(command, click.Group) and words:
        inner = command.make_context(name, [], parent=parent, resilient_parsing=True)
        return parsed(command, words[0], words[1:], inner)
    return command.make_context(name, words, parent=parent)
