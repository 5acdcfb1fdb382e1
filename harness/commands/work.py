# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload work`` and ``postload work status``."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from rich.markup import escape

from harness.arch import ARCHITECTURES
from harness.arch.accel import has_fast_kvm
from harness.commands.execute import told_walls
from harness.commands.output import err, print_json
from harness.commands.resolve import run_scope
from harness.errors import HostError, PostloadError, UsageError
from harness.qemu.binary import QemuBinary, find_binary, host_binary, probe_binary
from harness.qemu.installed import entries
from harness.report.console import SafeConsole
from harness.report.work import WorkDoc, work_text
from harness.work.ability import HostOffer, OfferedQemu
from harness.work.hosted import HostWorker
from harness.work.jobs import Jobs, Pulse, open_jobs


def work(
    store: str | None, qemus: tuple[str, ...], jobs: int, idle_s: float | None, lost_s: float, name: str | None
) -> int:
    """Take jobs until told to stop."""
    binaries = [probe_binary(find_binary(name)) for name in qemus] if qemus else list(_own_binaries())
    if not binaries:
        raise HostError("this host has no QEMU to offer: postload qemu install 10.0, or name one by --qemu")
    told_walls(binaries)  # what the store carries is loaded behind them
    offer = _offer(binaries, jobs, name or platform.node())
    with closing(_jobs_of(store)) as opened:
        _say(f"{offer.host}, worker {offer.pid}: {jobs} at a time, from {opened.name}")
        for each in offer.qemus:
            _say(f"  QEMU {each.version} ({each.qemu[:12]}) {each.path}")
        paths = {each.qemu: each.path for each in offer.qemus}
        pulse = Pulse(beat_s=lost_s / 6, lost_s=lost_s)
        HostWorker(opened, offer, paths, run_scope(), _say, pulse=pulse, idle_s=idle_s).serve()
    return 0


def status(store: str | None, as_json: bool) -> int:
    """Show workers and what waits."""
    with closing(_jobs_of(store)) as opened:
        doc = WorkDoc.of(opened.waiting(), opened.living(Pulse()))
    if as_json:
        print_json(doc.to_json())
    else:
        SafeConsole().print(escape(work_text(doc)), soft_wrap=True)
    return int(any(not each.able for each in doc.queues))


def _jobs_of(store: str | None) -> Jobs:
    if store is None:
        raise UsageError("expected --store postgresql://USER@HOST/DATABASE, or POSTLOAD_STORE")
    return open_jobs(store)


def _own_binaries() -> Iterator[QemuBinary]:
    """The host's own and all that are installed; one that does not start is told of and left out."""
    found: list[Path] = []
    for architecture in ARCHITECTURES:
        try:
            found.append(host_binary(architecture.program))
        except HostError:
            continue
    found += [each.launcher for each in entries() if each.whole]
    for path in dict.fromkeys(found):
        try:
            yield probe_binary(path)
        except PostloadError as error:
            _say(f"not offered: {error}")


def _offer(binaries: Sequence[QemuBinary], jobs: int, host: str) -> HostOffer:
    once = {binary.sha256: binary for binary in reversed(binaries)}.values()
    return HostOffer(
        host=host,
        pid=os.getpid(),
        jobs=jobs,
        arch=platform.machine(),
        kernel=platform.release(),
        kvm=any(_runs_kvm(binary) for binary in once),
        qemus=tuple(
            OfferedQemu(qemu=each.sha256, version=each.version, path=each.path) for each in reversed(list(once))
        ),
    )


def _runs_kvm(binary: QemuBinary) -> bool:
    if binary.target != platform.machine():
        return False
    try:
        return has_fast_kvm(binary)
    except PostloadError:
        return False


def _say(text: str) -> None:
    err.print(escape(text), soft_wrap=True)
