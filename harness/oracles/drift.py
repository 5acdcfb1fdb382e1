# SPDX-License-Identifier: GPL-2.0-or-later
"""Drift: is the state after n loads the state after one load? Field by field, through the vmdesc.

Two comparisons are made of each section. *n*: the state saved after the first load against the states saved after
half of the loads and after the last; what differs there is drift. *recording*: what was loaded against what was
saved after the first load; what differs there was changed by the load, which is told and is not drift.
Fields that move by nature are known by rules: the general ones are data beside this file, and a device's recipe has
its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from harness.devices.backends import Model
from harness.devices.device import Device
from harness.devices.saved import Comparison, Rule
from harness.errors import StreamError
from harness.experiments.drift import DriftRun, Snapshot
from harness.oracles.oracle import Opinion
from harness.results.cause import Drifted, DriftedField, Undecided, Why
from harness.results.verdict import Verdict
from harness.stream import wire
from harness.stream.fields import Field, walk
from harness.stream.model import Section
from harness.stream.vmdesc import DeviceDesc, FieldDesc, StructDesc, decode
from harness.yamlfile import load_model

RULES_FILE = Path(__file__).with_name("drift-rules.yaml")
#: More changes of a section than this are counted only.
MAX_TOLD = 64

Value = int | str | None


class _Rules(Model):
    rules: tuple[Rule, ...]


def load_rules(path: Path = RULES_FILE) -> tuple[Rule, ...]:
    """The general rules, or those of another file.

    :raises ConfigError: no such file, or a mistake in it
    """
    return load_model(path, _Rules).rules


def rules_for(devices: Iterable[Device], owned: Mapping[str, Sequence[str]]) -> tuple[Rule, ...]:
    """The general rules, and what the devices of a guest say of their own sections.

    :param owned: device to the labels of its sections; what the platform says is asked of any section
    """
    return (*load_rules(), *(rule for device in devices for rule in _own_rules(device, owned.get(device.name, ()))))


def _own_rules(device: Device, labels: Sequence[str]) -> list[Rule]:
    if device.rest:
        return list(device.drift)
    own = ((rule, label) for rule in device.drift for label in labels if rule.speaks_of(label))
    return [rule.model_copy(update={"section": label}) for rule, label in own]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A field that differs between two states.

    :param field: its path; bytes of a buffer each by their offset; ``(version)``, ``(section)``, and ``(size)``
        where nothing else is told, for the section itself
    :param old: None where it was not there
    :param new: None where it is not there any more
    """

    field: str
    type: str
    old: Value
    new: Value


def judge_drift(run: DriftRun, rules: Sequence[Rule] | None = None) -> dict[str, Opinion]:
    """A verdict on each section that was loaded, and on each that appeared, by its label.

    :return: drift or ok; harness-error for every section when the secondary broke before there were two states
        to compare, which is for the load oracle to speak of
    """
    appeared = {label for snapshot in run.snapshots for label in snapshot.sections} - run.excluded
    labels = [*run.sent, *sorted(appeared - set(run.sent))]
    rules = load_rules() if rules is None else rules
    return {label: _judge(run, rules, label) for label in labels}


def _judge(run: DriftRun, rules: Sequence[Rule], label: str) -> Opinion:
    details: dict[str, object] = {"loads": run.loads_acked, "back_to_back": run.back_to_back}
    by_load = _sort(rules, run.machine, label, Comparison.RECORDING, changed_by_load(run, label))
    details |= {"changed_by_load": _told(by_load[0]), "changed_by_nature": _told(by_load[1])}
    details["changed_by_load_fields"] = len(by_load[0])
    if len(run.snapshots) < 2:
        early = Undecided(why=Why.TOO_EARLY, load=run.broken.load if run.broken else None, phase=run.phase)
        return Opinion(verdict=Verdict.HARNESS_ERROR, causes=(early,), details=details)
    moved, natural = _sort(rules, run.machine, label, Comparison.N, changed_by_loads(run, label))
    details["by_nature"] = _told(natural)
    if not moved:
        return Opinion(verdict=Verdict.OK, details=details)
    cause = Drifted(
        section=label,
        fields=tuple(_drift(run, label, change) for change, _ in moved[:MAX_TOLD]),
        count=len(moved),
        loads=run.loads_acked,
        phase=run.phase,
    )
    return Opinion(verdict=Verdict.DRIFT, causes=(cause,), details=details)


def changed_by_load(run: DriftRun, label: str) -> list[Change]:
    """Fields that the first load did not bring to what had been saved."""
    if not run.snapshots:
        return []
    return changes(run.sent.get(label), run.snapshots[0].sections.get(label))


def changed_by_loads(run: DriftRun, label: str) -> list[Change]:
    """Fields that any later snapshot has otherwise than the first; the latest that differs is told."""
    first = run.snapshots[0].sections.get(label)
    found: dict[str, Change] = {}
    for snapshot in run.snapshots[1:]:
        found |= {c.field: c for c in changes(first, snapshot.sections.get(label))}
    return list(found.values())


def changes(old: Section | None, new: Section | None) -> list[Change]:
    """Every leaf field that differs, in the order of the old state; fields that came are last.

    Pure; a payload that the vmdesc does not fit is compared as far as its fields can be told apart.
    """
    if old is None or new is None:
        if old is new:
            return []
        there = ["absent" if section is None else "present" for section in (old, new)]
        return [Change(field="(section)", type="section", old=there[0], new=there[1])]
    if old.payload == new.payload and old.version_id == new.version_id:
        return []
    found = []
    if old.version_id != new.version_id:
        found.append(Change(field="(version)", type="section", old=old.version_id, new=new.version_id))
    before, after = leaves(old), leaves(new)
    for path in before | after:
        found += _changed(path, before.get(path), after.get(path))
    if not found:
        found.append(Change(field="(size)", type="section", old=len(old.payload), new=len(new.payload)))
    return found


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field without fields in it."""

    type: str
    value: Value


def leaves(section: Section) -> dict[str, Leaf]:
    """The leaf fields of a section by their path; a subsection is one too, with the value "present".

    Subsections that are missing are left out, and one that was not there when it was recorded stands by its name
    alone; where nothing fits any more, the payload is one field.
    """
    desc = section.desc
    for fitted in (False, True) if desc else ():
        assert desc is not None  # else there is nothing to try
        try:
            fields = decode(section.payload, _fitted(desc, section.payload) if fitted else desc)
        except StreamError:
            continue
        return {_path(f): _leaf(f) for f in walk(fields) if f.value is not None or f.type == "subsection"}
    return {"payload": Leaf("raw", section.payload.hex())}


def _path(field: Field) -> str:
    """Its path; what the vmdesc leaves over is named by the header of a subsection, if there is one."""
    if field.type != "raw" or not isinstance(field.value, str):
        return field.path
    raw = bytes.fromhex(field.value)
    name = raw[2 : 2 + raw[1]] if len(raw) > 2 and raw[0] == wire.SectionType.SUBSECTION else b""
    return name.decode() if name.isascii() and name else field.path


def _leaf(field: Field) -> Leaf:
    return Leaf(field.type, "present" if field.value is None else field.value)


def _fitted(desc: DeviceDesc, payload: bytes) -> DeviceDesc:
    """The description with only those subsections that are in the payload."""
    inside = StructDesc(
        vmsd_name=desc.vmsd_name,
        version=desc.version,
        fields=desc.fields,
        subsections=desc.subsections,
        size_bytes=desc.size_bytes,
    )
    inside = _fitted_struct(inside, payload, 0)
    return replace(desc, fields=inside.fields, subsections=inside.subsections, size_bytes=inside.size_bytes)


def _fitted_struct(desc: StructDesc, payload: bytes, start: int) -> StructDesc:
    at = start
    fields = []
    for field in desc.fields:
        fields.append(_fitted_field(field, payload, at))
        at += fields[-1].wire_bytes
    present = []
    for subsection in desc.subsections:
        name = subsection.vmsd_name.encode()
        header = bytes([wire.SectionType.SUBSECTION, len(name)]) + name
        if payload.startswith(header, at):
            present.append(_fitted_struct(subsection, payload, at + len(header) + wire.U32.size))
            at += present[-1].as_subsection_bytes
    return replace(desc, fields=tuple(fields), subsections=tuple(present), size_bytes=at - start)


def _fitted_field(field: FieldDesc, payload: bytes, at: int) -> FieldDesc:
    # elements that array_len stands for are alike, or the vmdesc would have told them one by one
    if field.struct is None or field.array_len is not None:
        return field
    inside = _fitted_struct(field.struct, payload, at)
    return replace(field, struct=inside, size_bytes=inside.size_bytes)


def _changed(path: str, old: Leaf | None, new: Leaf | None) -> Iterator[Change]:
    """One change for a number, one for each byte of a buffer."""
    if old == new:
        return
    kind = (old or new or Leaf("", None)).type
    before, after = old.value if old else None, new.value if new else None
    if not isinstance(before, str) or not isinstance(after, str) or len(before) != len(after):
        yield Change(field=path, type=kind, old=before, new=after)
        return
    for at, (was, now) in enumerate(zip(bytes.fromhex(before), bytes.fromhex(after), strict=True)):
        if was != now:
            yield Change(field=f"{path}[{at}]", type="byte", old=was, new=now)


Ruled = tuple[Change, tuple[str, ...]]


def _sort(
    rules: Sequence[Rule], machine: str, label: str, comparison: Comparison, found: Sequence[Change]
) -> tuple[list[Ruled], list[Ruled]]:
    """Those that no rule explains, and those that rules do, with their reasons."""
    unknown: list[Ruled] = []
    natural: list[Ruled] = []
    for change in found:
        used = explained_by([r for r in rules if r.applies(machine, label, comparison, change.field)], change)
        if used:
            natural.append((change, tuple(rule.reason for rule in used)))
        else:
            unknown.append((change, ()))
    return unknown, natural


def explained_by(rules: Sequence[Rule], change: Change) -> list[Rule]:
    """The rules that together explain a change; none when a bit is left that none of them lets move.

    :param rules: those that apply to its field
    """
    for rule in rules:
        if rule.bits is None:
            return [rule]
    if not isinstance(change.old, int) or not isinstance(change.new, int):
        return []
    moved = change.old ^ change.new
    used = [rule for rule in rules if rule.bits is not None and moved & rule.bits]
    for rule in used:
        moved &= ~(rule.bits or 0)
    return [] if moved else used


def _drift(run: DriftRun, label: str, change: Change) -> DriftedField:
    values = tuple(_value(run, snapshot, label, change) for snapshot in run.snapshots)
    numbers = [value for value in values if isinstance(value, int)]
    per_load = None
    creeps = False
    if len(numbers) == len(values):
        between = run.snapshots[-1].load - run.snapshots[0].load
        per_load = (numbers[-1] - numbers[0]) / between
        steps = [after - before for before, after in pairwise(numbers)]
        creeps = len(steps) > 1 and (all(step > 0 for step in steps) or all(step < 0 for step in steps))
    without = None if run.idle is None else _moved_idle(run, run.idle, label, change.field)
    return DriftedField(
        field=change.field,
        type=change.type,
        values=tuple(_cut(value) for value in values),
        per_load=per_load,
        creeps=creeps,
        without_loads=without,
    )


def _value(run: DriftRun, snapshot: Snapshot, label: str, change: Change) -> Value:
    """What the field was in a snapshot: the first one's where that does not differ."""
    first = run.snapshots[0].sections.get(label)
    now = snapshot.sections.get(label)
    return next((c.new for c in changes(first, now) if c.field == change.field), change.old)


def _moved_idle(run: DriftRun, idle: Snapshot, label: str, field: str) -> bool:
    last = run.snapshots[-1].sections.get(label)
    return any(c.field == field for c in changes(last, idle.sections.get(label)))


def _told(found: Sequence[Ruled]) -> list[dict[str, object]]:
    told = []
    for change, reasons in found[:MAX_TOLD]:
        entry: dict[str, object] = {"field": change.field, "type": change.type}
        entry |= {"old": _cut(change.old), "new": _cut(change.new)}
        told.append(entry | ({"reason": " ".join(reasons)} if reasons else {}))
    return told


def _cut(value: Value) -> Value:
    return value[:61] + "..." if isinstance(value, str) and len(value) > 64 else value


def unused_rules(rules: Sequence[Rule], runs: Sequence[DriftRun]) -> list[tuple[Rule, Comparison]]:
    """Rules, each with the comparison it names, that explain nothing in these runs: they are not needed.

    The save behind an idle time counts as a later one, so that what moves slowly can be shown to move.
    """
    left = [(rule, comparison) for rule in rules for comparison in rule.compare]
    for run in runs:
        for label in run.sent:
            seen = _all_changes(run, label)
            left = [(r, c) for r, c in left if not any(_explains(r, run.machine, label, c, d) for d in seen[c])]
    return left


def _all_changes(run: DriftRun, label: str) -> Mapping[Comparison, list[Change]]:
    later = [*run.snapshots, *([run.idle] if run.idle else [])]
    saved = [snapshot.sections.get(label) for snapshot in later]
    return {
        Comparison.N: [c for now in saved[1:] for c in changes(saved[0], now)],
        Comparison.RECORDING: [c for now in saved for c in changes(run.sent.get(label), now)],
    }


def _explains(rule: Rule, machine: str, label: str, comparison: Comparison, change: Change) -> bool:
    return rule.applies(machine, label, comparison, change.field) and bool(explained_by([rule], change))
