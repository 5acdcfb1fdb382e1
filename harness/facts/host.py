# SPDX-License-Identifier: GPL-2.0-or-later
"""System, CPU and kernel modules of this host, from ``/proc`` and ``/sys``."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from harness.facts.part import NotSaid, Part, not_known, read_text

#: Modules whose presence and parameters decide what a guest gets.
MODULES = re.compile(
    r"kvm(_\w+)?|vhost(_\w+)?|vfio(_\w+)?|vdpa(_\w+)?|tun|tap|macvtap|nbd|irqbypass|openvswitch|bridge"
)
_CPU_KEYS = {"vendor": "vendor_id", "model_name": "model name", "microcode": "microcode"}
_CPU_NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}


def system_facts(root: Path = Path("/")) -> Part:
    """Distribution, kernel and architecture.

    :param root: where ``etc`` is
    """
    part = Part()
    part.put("os", lambda: _os_release(root))
    part.values["kernel"] = platform.release()
    part.values["kernel_version"] = platform.version()
    part.values["architecture"] = platform.machine()
    return part


def cpu_facts(root: Path = Path("/")) -> Part:
    """The first CPU's vendor, family, model, stepping, microcode and flags (sorted), and how many there are."""
    part = Part()
    try:
        first = _first_cpu(read_text(root / "proc/cpuinfo"))
    except OSError as error:
        first = {}
        missing: Exception = OSError(error.errno, error.strerror, "/proc/cpuinfo")
    else:
        missing = NotSaid("/proc/cpuinfo")
    for name, key in _CPU_KEYS.items():
        part.put(name, lambda key=key: _need(first, key, missing))  # type: ignore[misc]
    for name, key in _CPU_NUMBERS.items():
        part.put(name, lambda key=key: int(_need(first, key, missing)))  # type: ignore[misc]
    part.put("flags", lambda: sorted(set(_need(first, "flags", missing).split())))
    part.values["cores"] = os.cpu_count() or 1
    return part


def module_facts(root: Path = Path("/")) -> Part:
    """Loaded and built-in modules that matter: name to parameters.

    A parameter that only root may read is None, and it is said why.
    """
    part = Part()
    folder = root / "sys/module"
    try:
        names = sorted(path.name for path in folder.iterdir() if MODULES.fullmatch(path.name))
    except OSError as error:
        part.unknown["*"] = not_known(OSError(error.errno, error.strerror, "/sys/module"))
        return part
    for name in names:
        parameters = _parameters(folder / name / "parameters")
        part.values[name] = parameters.values
        part.unknown |= {f"{name}.{key}": why for key, why in parameters.unknown.items()}
    return part


def _parameters(folder: Path) -> Part:
    part = Part()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        part.put(path.name, lambda path=path: read_text(path))  # type: ignore[misc]
    return part


def _first_cpu(text: str) -> dict[str, str]:
    lines = text.partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _need(values: dict[str, str], key: str, missing: Exception) -> str:
    if not values.get(key):
        raise missing
    return values[key]


def _os_release(root: Path) -> str:
    for line in read_text(root / "etc/os-release").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip("\"'")
    raise NotSaid("/etc/os-release")
