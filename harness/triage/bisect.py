# SPDX-License-Identifier: GPL-2.0-or-later
"""Which version changed it: a case tried on every QEMU between one that has the failure and one that has not.

A try takes a second, so all of them are tried and not half: what goes to and fro is seen then.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from harness.arch import Architecture
from harness.errors import UsageError
from harness.qemu.binary import QemuBinary
from harness.triage.bundle import SCRIPT, ScriptAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A QEMU to be tried.

    :param name: as the user knows it
    :param version: ``major.minor.micro``
    :param given: ``good`` or ``bad`` where the user said so
    """

    name: str
    path: str
    version: str
    sha256: str = ""
    given: str = ""

    @property
    def order(self) -> tuple[int, ...]:
        """Position among versions."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version)[:3])


class Found(StrEnum):
    """What a build was found to be."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skipped"


#: What a build is when the ends were exchanged.
_OTHER = {"good": Found.BAD, "bad": Found.GOOD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A build and what the script said."""

    build: Build
    answer: ScriptAnswer

    @property
    def outcome(self) -> Found:
        """Bad is reproduced."""
        if not self.answer.tried:
            return Found.SKIPPED
        return Found.BAD if self.answer.reproduced else Found.GOOD


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildChange:
    """Two builds, next to each other in what could be tried, between which it changed.

    :param skipped: builds in between that could not be tried
    """

    before: Tried
    after: Tried
    skipped: tuple[Build, ...] = ()

    @property
    def broke(self) -> bool:
        """It came; else it went."""
        return self.after.outcome is Found.BAD


@dataclass(frozen=True, slots=True, kw_only=True)
class BisectReport:
    """What the versions say.

    :param tried: in version order
    :param changes: one, where it came or went once
    """

    tried: tuple[Tried, ...]
    changes: tuple[BuildChange, ...]

    @property
    def misgiven(self) -> tuple[Tried, ...]:
        """Ends that are not what the user said they were, or could not be tried."""
        return tuple(each for each in self.tried if each.build.given and each.build.given != each.outcome)

    @property
    def swapped(self) -> bool:
        """The ends were exchanged, and nothing else is wrong."""
        ends = [each for each in self.tried if each.build.given]
        return len(self.changes) == 1 and all(each.outcome is _OTHER.get(each.build.given) for each in ends)

    @property
    def contradicts(self) -> bool:
        """What was found does not fit together."""
        return bool(self.misgiven) or len(self.changes) > 1

    @property
    def decided(self) -> bool:
        """One change, and nothing against it."""
        return len(self.changes) == 1 and not self.contradicts


Named = tuple[str, QemuBinary]


def builds(good: Named, bad: Named, wanted: Iterable[Named], installed: Iterable[Named]) -> list[Build]:
    """What to try, in version order, each program once: both ends, what is wanted, and what else lies between and is of
    the same architecture.

    :param good: name and binary
    :raises UsageError: both ends are the same program
    """
    if good[1].sha256 == bad[1].sha256:
        raise UsageError(f"--good and --bad are the same QEMU: {good[1].path}")
    ends = [replace(_build(*good), given="good"), replace(_build(*bad), given="bad")]
    first, last = sorted(ends, key=lambda end: end.order)
    found = [first, *(_build(*each) for each in wanted)]
    alike = (_build(*each) for each in installed if each[1].target == good[1].target)
    found += [build for build in alike if first.order <= build.order <= last.order]
    unique = {build.sha256: build for build in reversed([*found, last])}
    unique |= {end.sha256: end for end in ends}
    # of equal versions the ends stay outside
    return sorted(unique.values(), key=lambda build: (build.order, (build == last) - (build == first)))


def _build(name: str, binary: QemuBinary) -> Build:
    return Build(name=name, path=binary.path, version=binary.version, sha256=binary.sha256)


def bisect(found: Sequence[Build], run: Callable[[Build], ScriptAnswer], each: Callable[[Tried], None]) -> BisectReport:
    """Try all of them.

    :param run: the case's script
    :param each: told of each answer
    :raises HarnessError: the script came to no answer
    """
    tried = []
    for build in found:
        tried.append(Tried(build=build, answer=run(build)))
        each(tried[-1])
    return judge(tried)


def judge(tried: Sequence[Tried]) -> BisectReport:
    """What some answers, in version order, come to. Pure."""
    changes: list[BuildChange] = []
    last: Tried | None = None
    skipped: list[Build] = []
    for each in tried:
        if each.outcome is Found.SKIPPED:
            skipped.append(each.build)
            continue
        if last is not None and each.outcome is not last.outcome:
            changes.append(BuildChange(before=last, after=each, skipped=tuple(skipped)))
        last, skipped = each, []
    return BisectReport(tried=tuple(tried), changes=tuple(changes))


def git_lines(change: BuildChange, case: Path, guests: Architecture) -> list[str]:
    """Commands that find the commit in a clone of QEMU's sources.

    Distributions add to a release; the tags are those of the releases themselves. ``git bisect run`` takes exit code 0
    for the old state, so the script's codes are turned round where the failure is the new state.

    :param case: the bundle
    :param guests: the architecture of its machine
    """
    old, new = _tag(change.before.build), _tag(change.after.build)
    if old == new:
        return []
    script = shlex.quote(str(case / SCRIPT))
    start = "git bisect start" if change.broke else "git bisect start --term-old=fails --term-new=passes"
    invert = " --invert" if change.broke else ""
    return [
        f"mkdir -p build && (cd build && ../configure --target-list={guests.name}-softmmu --enable-replication)",
        f"{start} {new} {old}",
        f"git bisect run sh -c 'make -C build {guests.program.name} >/dev/null 2>&1 || exit 125; "
        f"{script}{invert} build/{guests.program.name} -- -L pc-bios'",
    ]


def _tag(build: Build) -> str:
    numbers = [*build.order, 0, 0][:2]
    return f"v{numbers[0]}.{numbers[1]}.0"
