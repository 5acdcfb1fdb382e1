# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload devices``: what a QEMU has, what becomes of each type, and whether a recipe works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from harness.arch import architecture_of
from harness.commands.output import err, print_json
from harness.commands.resolve import check_machines, common_accel, guest_maker, host_binaries, run_scope
from harness.commands.selection import told
from harness.devices.device import device_types, known_names, unknown_device
from harness.devices.recipe import load_recipe, load_recipes, recipe_text
from harness.errors import UsageError
from harness.qemu.binary import QemuBinary
from harness.report.catalogue import catalogue_of, print_catalogue, print_entry, underived_text
from harness.report.console import SafeConsole
from harness.report.lacks import step_text
from harness.state.catalogue import DeviceTrial, Offer, offer_of
from harness.state.devicecheck import CheckedStep, DeviceCheck, works
from harness.yamlfile import line_of

_MARKS = {True: "ok", False: "wrong", None: "-"}


def catalogue(given: dict[str, Any]) -> int:
    """Print every device type of a QEMU with what becomes of it on one machine."""
    trial, offer = _trial(given)
    done = told(f"{given['machine']}: tried", sum(len(rows) for rows in offer.derived.rows.values()))
    found = catalogue_of(trial, offer, given["jobs"], done)
    if given["as_json"]:
        print_json(found.document())
    else:
        print_catalogue(found, SafeConsole())
    return 0


def show(name: str, given: dict[str, Any]) -> int:
    """Print what becomes of one type, and its recipe.

    :raises UsageError: the QEMU has no such type; a recipe is asked for, and there is none
    """
    trial, offer = _trial(given)
    devices = offer.named(name) if name not in ("all",) and not any(mark in name for mark in "*?[:") else []
    kind = next((types for types, rows in offer.derived.rows.items() if devices and devices[0].name in rows), name)
    if kind not in offer.types:
        raise unknown_device(name, [*known_names(offer.devices.values()), *offer.types])
    if given["as_yaml"]:
        if not devices:
            why = offer.derived.underived[kind]
            raise UsageError(f"{name} has no recipe: {why.status}: {underived_text(why)}")
        click.echo(recipe_text(devices[0]), nl=False)
        return 0
    found = catalogue_of(trial, offer, 1, lambda _: None, [kind])
    if given["as_json"]:
        print_json(found.document())
    else:
        print_entry(found, recipe_text(devices[0]) if devices else "", SafeConsole())
    return 0


def _trial(given: dict[str, Any]) -> tuple[DeviceTrial, Offer]:
    recipes = {name: device for name, device in load_recipes().devices.items() if not device.rest}
    (binary,) = host_binaries([given["qemu"]] if given["qemu"] else [], set(), [given["machine"]])
    check_machines([binary], [given["machine"]])
    offer = offer_of(binary, recipes)
    binary = replace(binary, devices=frozenset(offer.types))
    accel = common_accel([binary], given["accel"])
    return DeviceTrial(binary=binary, machine=given["machine"], accel=accel.name, scope=run_scope()), offer


def check(file: Path, given: dict[str, Any]) -> int:
    """Try a device recipe on a real QEMU: does it start, own sections, and do its guest commands work?"""
    device = load_recipe(file)
    binaries = host_binaries(given["qemus"], device_types([device]), given["machines"])
    check_machines(binaries, given["machines"])
    accel = common_accel(binaries, given["accel"])
    make = guest_maker(given["guest"], given["machines"])
    steps: dict[str, list[CheckedStep]] = {}
    with run_scope() as scope:
        for binary, machine in _wanted(binaries, given["machines"]):
            found = DeviceCheck(
                binary=binary,
                machine=machine,
                accel=accel.name,
                guest=lambda machine=machine: make(architecture_of(machine), device.wide),  # type: ignore[misc]
                scope=scope,
                say=lambda text: err.print(escape(text), soft_wrap=True),
            ).run(device)
            steps.setdefault(binary.version, []).extend(found)
    if given["as_json"]:
        print_json(_document(file, device.name, steps))
    else:
        out = SafeConsole()
        for line in _lines(file, device.name, steps):
            out.print(escape(line), soft_wrap=True)
    return 0 if all(works(found) for found in steps.values()) else 1


def _wanted(binaries: Sequence[QemuBinary], machines: Sequence[str]) -> Iterator[tuple[QemuBinary, str]]:
    for binary in binaries:
        yield from ((binary, machine) for machine in machines if binary.machine(machine) is not None)


def _document(file: Path, name: str, steps: dict[str, list[CheckedStep]]) -> dict[str, Any]:
    return {
        "schema": "postload.device-check/1",
        "file": str(file),
        "device": name,
        "works": all(works(found) for found in steps.values()),
        "steps": [
            {"qemu": qemu, **asdict(step), "line": line_of(file, step.key)}
            for qemu, found in steps.items()
            for step in found
        ],
    }


def _lines(file: Path, name: str, steps: dict[str, list[CheckedStep]]) -> Iterator[str]:
    for qemu, found in steps.items():
        for machine in dict.fromkeys(step.machine for step in found):
            mine = [step for step in found if step.machine == machine]
            yield f"{name} on {machine}, QEMU {qemu}: {'works' if works(mine) else 'does not work'}"
            for step in mine:
                text = step_text(step)
                said = f"  {text}" if text and step.ok is not False else ""
                yield f"  {_MARKS[step.ok]:5} {step.name:16} {step.seconds:5.1f} s{said}"
                if step.ok is False:
                    yield f"  {file}:{line_of(file, step.key)}: {'.'.join(step.key)}: {text}"
