# SPDX-License-Identifier: GPL-2.0-or-later
"""A run whose tasks are done by the workers of a store. Without ``--remote``, nothing of that is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from harness.commands.output import err
from harness.errors import HostError, UsageError
from harness.qemu.scope import ProcessScope
from harness.work.asked import Options
from harness.work.worker import Worker

if TYPE_CHECKING:
    from harness.work.jobs import Jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Where the tasks of a run are done.

    :param hosts: by each of these; empty: by any that is able to
    :param worker: makes the worker of a run of this name and scope; None where the run does them itself
    """

    hosts: tuple[str, ...] = ()
    worker: Callable[[str, ProcessScope], Worker] | None = None

    def of(self, run: str) -> Callable[[ProcessScope], Worker] | None:
        """What makes the worker of a run, as :class:`harness.work.run.Run` takes it."""
        return None if self.worker is None else partial(self.worker, run)


@contextmanager
def elsewhere(given: dict[str, Any], options: Options) -> Iterator[Elsewhere]:
    """Where the tasks of a run are done: here, or by the workers of its store.

    :param given: the command's ``store``, ``remote`` and ``each_host``
    :raises UsageError: there is no store, or it has no jobs
    :raises HostError: it cannot be opened, or no host is there
    """
    if not given["remote"] and not given["each_host"]:
        yield Elsewhere()
        return
    if given["store"] is None:
        raise UsageError("--remote: expected --store postgresql://USER@HOST/DATABASE, where the workers are")
    from harness.work.jobs import open_jobs
    from harness.work.remote import RemoteWorker

    made: list[RemoteWorker] = []
    with closing(open_jobs(given["store"])) as jobs:
        hosts = _hosts(jobs, options) if given["each_host"] else ()

        def make(run: str, scope: ProcessScope) -> Worker:
            made.append(RemoteWorker(jobs, run, scope, _say, hosts=hosts))
            return made[-1]

        try:
            yield Elsewhere(hosts=hosts, worker=make)
        finally:
            for worker in made:
                worker.close()


def _hosts(jobs: Jobs, options: Options) -> tuple[str, ...]:
    """The hosts with a living worker that has all QEMUs and the accelerator of a run."""
    from harness.work.jobs import Pulse

    wanted = {binary.sha256 for binary in options.binaries}
    living = [each.offer for each in jobs.living(Pulse())]
    able = {
        offer.host
        for offer in living
        if wanted <= {each.qemu for each in offer.qemus} and (offer.kvm or options.accel != "kvm")
    }
    if not able:
        there = f"living workers: {', '.join(sorted({offer.host for offer in living})) or 'none'}"
        raise HostError(f"no host has all QEMUs of the run under {options.accel.upper()}; {there}")
    _say(f"on each of these hosts: {', '.join(sorted(able))}")
    return tuple(sorted(able))


def _say(text: str) -> None:
    err.print(escape(f"postload: {text}"), soft_wrap=True)
