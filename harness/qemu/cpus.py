# SPDX-License-Identifier: GPL-2.0-or-later
"""Which CPU models a QEMU has, and which of them it is about to lose; kept by the build's hash."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from harness.cache import keep_answer, kept_answer
from harness.errors import QemuError
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.installed import launched
from harness.qemu.vm import Vm

#: Raise it when other things are kept: answers of another number are not used.
_ANSWERS = 1


@cache
def cpu_models(binary: str) -> Mapping[str, bool]:
    """Name of each CPU model to whether it is deprecated.

    :raises QemuError: the QEMU does not start, or does not say
    """
    try:
        program = launched(Path(binary))
    except OSError as error:
        raise QemuError(f"{binary}: {error.strerror}") from error
    key = f"probe/{program.sha256}{f'-{program.key}' if program.key else ''}-cpus-{_ANSWERS}.json"
    models: dict[str, bool] | None = kept_answer(key)
    if models is None:
        models = _ask(binary)
        keep_answer(key, models)
    return models


def _ask(binary: str) -> dict[str, bool]:
    options = (
        *(Option(name=name) for name in ("nodefaults", "no-user-config", "S")),
        Option(name="display", first="none"),
        Option(name="machine", first="none"),
    )
    with Vm(CommandLine(binary=binary, options=options)) as vm:
        found = vm.qmp("query-cpu-definitions")
    return {model["name"]: bool(model.get("deprecated")) for model in found}
