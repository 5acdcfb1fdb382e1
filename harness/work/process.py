# SPDX-License-Identifier: GPL-2.0-or-later
"""A worker in another process: ``python -m harness.work.process`` reads tasks, and writes what comes of them.

One task a line on its standard input, as JSON; for each, lines of JSON on its standard output: what is
:data:`harness.work.worker.Reported`, and in the end :class:`Over`. What it has opened it keeps for the next task. It
dies with whoever started it, and its QEMUs die with it. Whatever it prints goes to standard error.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import IO, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from harness.errors import BudgetError, HarnessError, HostError, PostloadError, Stopped
from harness.qemu.process import guarded
from harness.qemu.scope import ProcessScope
from harness.work.task import Task
from harness.work.worker import CellDone, Learnt, Loaded, LocalWorker, Tell

#: How much of what a worker printed stands in the error when it ends by itself.
_SAID_CHARS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """A task is over.

    :param error: why it could not be carried out, or empty
    :param whose: ``host`` when no other task could be either; ``budget`` when it took longer than it was given
    """

    error: str = ""
    whose: Literal["", "host", "task", "budget"] = ""
    kind: Literal["over"] = "over"


Said = Loaded | CellDone | Learnt | Over
_Line = Annotated[Said, Field(discriminator="kind")]


@cache
def _lines() -> TypeAdapter[Said]:
    return TypeAdapter(_Line)


def line_of(said: Said) -> str:
    """What a worker says, as a line of JSON without its end."""
    return _lines().dump_json(said, by_alias=True).decode()


def said_in(line: str | bytes) -> Said | None:
    """What :func:`line_of` gave; None for a line that was cut short, or is none."""
    try:
        return _lines().validate_json(line)
    except ValidationError:
        return None


def over_for(error: PostloadError) -> Over:
    """How a task ended by an error; see :func:`raise_for`."""
    if isinstance(error, HostError):
        return Over(error=str(error), whose="host")
    return Over(error=str(error), whose="budget" if isinstance(error, BudgetError) else "task")


def raise_for(over: Over, budget_s: float | None) -> None:
    """Raise what ended a task, if it did not end well; see :meth:`harness.work.worker.Worker.run`."""
    if over.whose == "budget" and budget_s is not None:
        raise BudgetError(budget_s)
    if over.error:
        raise HostError(over.error) if over.whose == "host" else HarnessError(over.error)


class ProcessWorker:
    """Has tasks carried out by processes of its own, one for each task that is done at a time.

    :param scope: of the run; closing it ends the processes
    """

    def __init__(self, scope: ProcessScope) -> None:
        self._scope = scope

    def run(self, task: Task, tell: Tell) -> None:
        """See :meth:`harness.work.worker.Worker.run`."""
        with tempfile.TemporaryFile() as errors:
            process = self._started(errors)
            try:
                over = _talk(process, task, tell)
            finally:
                process.kill()
                process.wait()
                self._scope.discard(process)
            self._scope.check()
            if over is None:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()[-_SAID_CHARS:]
                raise HarnessError(f"the worker ended before its task was over: {said or 'it printed nothing'}")
            raise_for(over, task.budget_s)

    def _started(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            guarded([sys.executable, "-m", __spec__.name]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # a Ctrl-C at the terminal is for the run, which ends its workers
            process_group=0,
        )
        self._scope.add(process)
        return process


def _talk(process: subprocess.Popen[bytes], task: Task, tell: Tell) -> Over | None:
    """Give it the task, and pass on what it says; None when it ended before it was done."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout, suppress(BrokenPipeError):
        process.stdin.write(task.to_json().encode() + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            said = said_in(line)
            if said is None or isinstance(said, Over):
                return said  # None: cut short when it was killed
            tell(said)
    return None


def serve(tasks: Iterable[str], out: IO[str], scope: ProcessScope) -> None:
    """Carry out tasks, a line each."""
    worker = LocalWorker(scope)

    def say(said: Said) -> None:
        out.write(line_of(said) + "\n")
        out.flush()

    for text in tasks:
        try:
            worker.run(Task.from_json(text), say)
        except Stopped:
            return
        except PostloadError as error:
            say(over_for(error))
        else:
            say(Over())


def main() -> None:
    """Serve until the input ends."""
    # what prints by accident must not come between the lines
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ProcessScope() as scope:
        serve(sys.stdin, out, scope)


if __name__ == "__main__":
    main()
