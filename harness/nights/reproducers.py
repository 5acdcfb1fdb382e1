# SPDX-License-Identifier: GPL-2.0-or-later
"""Reproducers of open findings: what each says of the builds of a night.

A finding that is not seen any more is fixed only when its reproducer says so. The reproducer is the bundle that was
made of the finding when it was seen first (:mod:`harness.triage.bundle`); of one that has none, nothing says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.results.document import Qemu
from harness.results.key import Route, release_line
from harness.store.read import Reproduction
from harness.store.signatures import SignatureOn
from harness.store.states import Reproduced, SignatureState
from harness.triage.bundle import ScriptAnswer
from harness.triage.case import CASE_FILE

#: A finding may come now and then: it is gone when it did not come in so many tries.
TRIES = 3
_LONGEST = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproducer:
    """A finding that a build is to be asked for.

    :param bundle: folder of its script
    """

    signature: str
    qemu: Qemu
    bundle: Path


def bundle_folder(bundles: Path, signature: str) -> Path:
    """Where the bundle of a finding lies, by its name."""
    digest = hashlib.sha256(signature.encode()).hexdigest()[:8]
    return bundles / f"{re.sub(r'[^A-Za-z0-9.+-]+', '-', signature)[:_LONGEST]}-{digest}"


def reproducers_due(
    findings: Sequence[SignatureOn],
    builds: Sequence[Qemu],
    answers: Sequence[Reproduction],
    seen: Collection[tuple[str, str]],
    bundles: Path,
) -> Iterator[Reproducer]:
    """Open findings of the QEMUs of a night whose builds were not asked for them yet, and have not shown them either.

    :param findings: each signature on each QEMU that it was seen on
    :param builds: of the night, by the labels that cells have for them
    :param seen: names of findings, each with the hash of a build that it was seen on
    """
    asked = {*seen} | {
        (a.signature, a.build.sha256) for a in answers if a.answer in (Reproduced.STILL, Reproduced.GONE)
    }
    for finding in findings:
        bundle = bundle_folder(bundles, finding.signature)
        if finding.state is SignatureState.FIXED_IN or not (bundle / CASE_FILE).exists():
            continue
        for qemu in builds:
            same_line = release_line(qemu.label) == Route.parse(finding.qemu).loader
            if same_line and (finding.signature, qemu.sha256) not in asked:
                yield Reproducer(signature=finding.signature, qemu=qemu, bundle=bundle)


def asked_of(run: Callable[[], ScriptAnswer]) -> Reproduced:
    """What a reproducer says: one try is enough for a finding that is there."""
    answers = []
    for _ in range(TRIES):
        answers.append(run())
        if answers[-1].reproduced:
            return Reproduced.STILL
        if not answers[-1].tried:
            return Reproduced.UNDECIDED
    return Reproduced.GONE
