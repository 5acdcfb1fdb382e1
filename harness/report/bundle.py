# SPDX-License-Identifier: GPL-2.0-or-later
"""The texts of a bundle: README.md, issue.md and qemu-command.txt."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.arch import architecture_of
from harness.guests.machine import filled, firmware_sink
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.ivshmem import IVSHMEM
from harness.qemu.vhostdisk import VHOST_DISK
from harness.report.allocations import allocations_how, allocations_text
from harness.report.sentences import class_meaning, controls_text, figure_text, text_of
from harness.report.stacks import stack_text, symbols_text
from harness.report.text import plural
from harness.results.frames import to_dispatcher
from harness.results.outcome import ControlName
from harness.results.verdict import FailureClass
from harness.text import one_line, printable
from harness.triage.allocations import Allocations
from harness.triage.bundle import BundleMaterial, ScriptAnswer, Writing
from harness.triage.case import CASE_PLACE

_LOG_CHARS = 3000
#: A table of fields is cut here.
_MAX_FIELDS = 12
_CONTROL_TEXT = "what a checkpoint loads without the section, to be compared with"
#: What stands behind the words of :func:`harness.report.sentences.controls_text`.
_CONTROLS = {
    ControlName.FRESH: "*fresh*: an ordinary incoming migration of the same state into a new process",
    ControlName.LOADVM: "*loadvm*: the same state as a snapshot, which QEMU loads after a reset of kind snapshot-load; "
    "a device may by design treat that in another way than a cold reset",
    ControlName.PAIR: "*pair*: a real primary and a real secondary, without this program between them",
    ControlName.SAME: "*the same state again*: the secondary's own state is loaded a second time",
    ControlName.BACK_TO_BACK: "*back to back*: the section stands twice in one buffer, and no guest runs in between",
}
_FILES = {
    "reproduce.py": "plays the primary of a COLO pair; Python 3.8 or newer, nothing else",
    "case.json": "the case: machine, what is loaded, what is expected",
    "head.bin": "recorded migration stream: magic, version, configuration section",
    "body.bin": "recorded migration stream: what follows, as far as it is needed",
    "qemu-command.txt": "the machine as a command line",
    "issue.md": "QEMU's template for bugs, filled in",
    "log.txt": "what QEMU printed",
    "backtrace.txt": "the stack",
    "allocations.txt": "the stacks of what stays allocated",
}


def describe(
    material: BundleMaterial, document: dict[str, Any], answer: ScriptAnswer, others: Sequence[ScriptAnswer]
) -> dict[str, str]:
    """Further files of a bundle: name to content.

    :param document: ``case.json``
    :param answer: of the QEMU that it was found on
    """
    files = {"qemu-command.txt": _command_file(document), "issue.md": _issue(material, document, answer, others)}
    if material.log:
        files["log.txt"] = material.log.rstrip() + "\n"
    if material.backtrace:
        files["backtrace.txt"] = stack_text(material.backtrace) + "\n"
    if material.allocations and material.allocations.sites:
        files["allocations.txt"] = allocations_text(material.allocations, whole=True) + "\n"
    files["README.md"] = _readme(document, answer, others, files)
    return {name: without_home(text) for name, text in files.items()}


#: For :func:`harness.triage.bundle.bundle_cell`.
WRITING = Writing(describe=describe, sentence=text_of)


def without_home(text: str) -> str:
    """The text without the folder, and so the name, of the user: it is made to be sent around."""
    home = str(Path.home())
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?=/|\b)", "~", text)


def title(document: dict[str, Any]) -> str:
    """One line for the head of a report."""
    expect, sections = document["expect"], ", ".join(document["sections"])
    if not document["loads"]:
        return _migration_title(document, sections)
    what = (expect["function"] or expect["assertion"] or expect["exit"]) if document["verdict"] == "crash" else ""
    if _is_together(document):
        return one_line(f"{document['family']}: {sections} leaks memory when it is loaded again without a reset")
    where = f"loading {sections}" if sections else "a device load"
    kind = {
        "crash": "crashes",
        "hang": "hangs",
        "reject": "refuses its own state",
        "leak": "leaks memory",
        "drift": "changes its state by",
    }
    how = kind.get(document["verdict"], f"comes to {document['verdict']}")
    return one_line(f"{document['family']}: COLO secondary {how} {where}{f' ({what})' if what else ''}")


def _migration_title(document: dict[str, Any], sections: str) -> str:
    """Of what fails without any checkpoint."""
    verdict, version = document["verdict"], document["qemu"].get("version", "")
    by = document["recorded"]
    route = f"from QEMU {by['version']} to {version}" if by else f"to QEMU {version}"
    kind = {"crash": "crashes the destination", "hang": "hangs", "reject": "is refused"}
    why = document["expect"].get("reason") or ""
    what = f", {sections}" if sections else ""
    told = f"{document['machine']}: migration {route} {kind.get(verdict, f'comes to {verdict}')}{what}"
    return one_line(f"{told} ({why})" if why else told)


def _readme(
    document: dict[str, Any], answer: ScriptAnswer, others: Sequence[ScriptAnswer], files: dict[str, str]
) -> str:
    rows = [f"    {name:<18}{_FILES[name]}" for name in _FILES if name in files or not name.endswith((".md", ".txt"))]
    checkpoints = [name for entry in document["checkpoints"] for name in (entry["devices"], entry["ram"]) if name]
    names = [(name, "what a checkpoint loads") for name in checkpoints]
    names += [(document["control"], _CONTROL_TEXT)] if document["control"] else []
    rows[4:4] = [f"    {name:<18}{what}" for name, what in names]
    return f"""# {title(document)}

{_sentence(document)}

## Run it

    ./reproduce.py /path/to/{_program(document)}
    ./reproduce.py build/{_program(document)} -v -- -L pc-bios      # options of QEMU stand behind --

It takes some seconds and needs no root, no guest image and no second QEMU. It prints one line and ends with

| exit code | |
|---|---|
| 0 | reproduced |
| 1 | not reproduced, or failed in another way |
| 125 | could not be tried: no such machine type, no COLO, does not start, does not take the recorded machine |

`git bisect run` takes these codes as they are to find what mended it; to find what broke it, add `--invert`.

## Expected output

{_code([answer, *others])}

## What is in it

{chr(10).join(rows)}

The binary files are pieces of a QEMU migration stream (docs/devel/migration); .gz ones are packed. They were recorded
with machine type {document["machine"]}. A build that does not have it is tried with its newest {document["family"]},
and where that does not know an optional part of the state, without that part; the script says so.
"""


def _issue(
    material: BundleMaterial, document: dict[str, Any], answer: ScriptAnswer, others: Sequence[ScriptAnswer]
) -> str:
    qemu = document["qemu"]
    return f"""<!-- title: {title(document).replace("--", "- -")} -->

## Host environment
 - Operating system: {_operating_system()}
 - OS/kernel version: {" ".join(platform.uname()[index] for index in (0, 2, 3, 4))}
 - Architecture: {platform.machine()}
 - QEMU flavor: {_program(document)}
 - QEMU version: {qemu.get("version", "")}{f" ({qemu['build']})" if qemu.get("build") else ""}
 - QEMU command line:
   ```
   {shell_line(document)}
   ```{_scratch(document)}

## Emulated/Virtualized environment
 - Operating system: {_guest(material, document)}
 - OS/kernel version: {f"state recorded from {material.guest}" if material.guest else "not needed to reproduce it"}
 - Architecture: {architecture_of(document["machine"]).name}

## Description of problem

{_sentence(document)}

{_what_happens(document)}{_class_text(document)}{_controls(material)}

## Steps to reproduce
1. Unpack the attached folder.
2. Run `./reproduce.py /path/to/{_program(document)}` (Python's standard library only; it starts QEMU with the command
   line above, {_what_is_sent(document)}).
3. It prints, for the QEMU above:

{_code([answer])}

## Additional information

{_details(material, document, others)}
<!-- The line below ensures that proper tags are added to the issue. Please do not remove it. -->
/label ~"kind::Bug"
"""


def _is_together(document: dict[str, Any]) -> bool:
    """Of a leak that loads in one buffer show: with one load a checkpoint, as COLO loads, there is none, or it was not
    measured."""
    return document["kind"] == "leak" and bool(document["leak"]["loads_per_checkpoint"] > 1)


def _what_happens(document: dict[str, Any]) -> str:
    if _is_together(document):
        return (
            "The section stands many times in one device buffer of a COLO checkpoint, so that it is loaded again and\n"
            "again without a reset in between. COLO itself loads it once in a checkpoint: where QEMU resets the\n"
            "machine before each checkpoint's load, COLO does not lose this memory."
        )
    if document["loads"]:
        return (
            "A COLO secondary loads device state into a machine that is in use, at each checkpoint, without a reset\n"
            "in between (`colo_incoming_process_checkpoint` in migration/colo.c)."
        )
    by = document["recorded"]
    build = f" ({by['build']})" if by and by.get("build") else ""
    whose = f"The state is that of a guest of QEMU {by['version']}{build}. " if by else ""
    return f"{whose}It fails in the incoming migration stream, before any checkpoint of COLO."


def _what_is_sent(document: dict[str, Any]) -> str:
    if document["loads"]:
        return "sends it a recorded migration stream over a unix socket, then a COLO checkpoint with the device state"
    return "sends it a recorded migration stream over a unix socket"


def _details(material: BundleMaterial, document: dict[str, Any], others: Sequence[ScriptAnswer]) -> str:
    parts = []
    if document["fields"]:
        drift = document["kind"] == "drift"
        what = "What moves (healthy: after one load)" if drift else "What is needed in the loaded state"
        parts.append(f"{what}:\n\n" + _field_table(document["fields"]))
    if others:
        parts.append(f"Other builds:\n\n{_code(others)}")
    if material.log:
        parts.append(f"QEMU printed:\n\n{_fenced(material.log.strip()[-_LOG_CHARS:])}")
    if material.backtrace:
        parts.append(f"Stack:\n\n{_fenced(stack_text(material.backtrace))}")
        if any(not frame.function for frame in material.backtrace.frames):
            parts.append(_symbols(document))
    if document["leak"]:
        parts.append(_leak(document["leak"]))
        parts += _call_sites(material.allocations, document) if material.allocations else []
    if document["signature"]:
        parts.append(f"Signature: `{document['signature'].get('name', '')}`")
    rate = document["rate"]
    if 0 < rate["failed"] < rate["tried"]:
        parts.append(f"It fails now and then: {rate['failed']} of {rate['tried']} times.")
    return "".join(f"{part}\n\n" for part in parts)


def _symbols(document: dict[str, Any]) -> str:
    return symbols_text(document["machine"], document["qemu"].get("build", ""))


def _leak(leak: dict[str, Any]) -> str:
    """What stays allocated, and where that can be seen."""
    way = "one load a checkpoint" if leak["loads_per_checkpoint"] == 1 else "back to back"
    figure = figure_text(leak["bytes_per_load"], leak["low"], leak["high"])
    text = f"Each load leaves {figure} bytes of heap behind ({way}, {plural(leak['loads'], 'load')})."
    chunks = [f"{count:.2f} of {plural(size, 'byte')}" for size, count in leak["chunks"]]
    if not chunks:
        return f"{text} The sizes of the allocations are not known: the heap could not be walked chunk by chunk."
    return (
        f"{text} They are, for each load, {', '.join(chunks)} (malloc's own 8 bytes and the rounding to 16 among them)."
    )


def _call_sites(found: Allocations, document: dict[str, Any]) -> list[str]:
    """Who allocates what stays, or why nobody can tell."""
    if not found.sites:
        how = one_line(allocations_how(found))
        return [f"{how[0].upper()}{how[1:]}."]
    parts = [f"Allocated for each load, and never freed:\n\n{_fenced(allocations_text(found, whole=False))}"]
    unnamed = any(not frame.function for site in found.sites for frame in to_dispatcher(site.frames))
    return [*parts, _symbols(document)] if unnamed else parts


def _sentence(document: dict[str, Any]) -> str:
    sentence = one_line(document["sentence"]) or f"{document['verdict']} while a device state is loaded"
    # as it stands: a log's words are not to be read as markup, nor as a command of the bug tracker
    sentence = re.sub(r"([<`]|\](?=\())", r"\\\1", sentence)
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith(".") else ".")


def _class_text(document: dict[str, Any]) -> str:
    if not document["class"]:
        return ""
    return f"\nClass of this failure: {document['class']} ({class_meaning(FailureClass(document['class']))})."


def _controls(material: BundleMaterial) -> str:
    if material.outcome is None or not (told := controls_text(material.outcome)):
        return ""
    meanings = [_CONTROLS[control.name] for control in material.outcome.controls]
    explained = "".join(f"\n- {text}" for text in dict.fromkeys(meanings))
    return f"\n\nControls: {told}.\n{explained}"


def _guest(material: BundleMaterial, document: dict[str, Any]) -> str:
    if document["guest_mode"] == "parked":
        return "none runs (the recorded CPUs are halted, no guest code is executed)"
    return "Linux, recorded"


def _field_table(fields: Sequence[dict[str, Any]]) -> str:
    lines = ["| section | field | byte of it | bit | value | healthy | register |", "|---|---|---|---|---|---|---|"]
    for each in fields[:_MAX_FIELDS]:
        cells = [each["section"], each["path"], f"0x{each['offset'] - each['field_offset']:x}"]
        cells += [each[key] for key in ("bit", "value", "healthy", "register")]
        texts = ["" if cell is None else one_line(str(cell)).replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join(texts) + " |")
    if len(fields) > _MAX_FIELDS:
        lines.append(f"\n{len(fields) - _MAX_FIELDS} more are in case.json.")
    return "\n".join(lines)


def _code(answers: Sequence[ScriptAnswer]) -> str:
    return _fenced("\n".join(answer.line for answer in answers))


def _fenced(text: str) -> str:
    """A block of code, behind a fence that nothing in it can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{printable(text)}\n{fence}"


def _scratch(document: dict[str, Any]) -> str:
    """What the placeholder of the command line stands for."""
    images = [f"{name} ({size >> 20} MiB)" for name, size in document["scratch"].items()]
    return f"\n   SCRATCH is a folder with empty images: {', '.join(images)}." if images else ""


def _beside(document: dict[str, Any]) -> str:
    """What is beside QEMU where the machine has a TPM, a disk behind vhost-user, or memory from a server."""
    lines = ""
    if any(option["name"] == "tpmdev" for option in document["options"]):
        lines += "# The chardev of -tpmdev is a socket to a swtpm with an empty TPM: reproduce.py starts one.\n"
    if any(option["props"].get("fd") == VHOST_DISK for option in document["options"]):
        lines += (
            f"# A chardev with fd={VHOST_DISK} is a socket to a qemu-storage-daemon with an empty disk of this size:\n"
            "# reproduce.py starts one.\n"
        )
    if any(option["props"].get("fd") == IVSHMEM for option in document["options"]):
        lines += (
            f"# A chardev with fd={IVSHMEM} is a socket to an ivshmem server with memory of this size, whose first\n"
            "# client this QEMU is: reproduce.py is one.\n"
        )
    return lines


def _command_file(document: dict[str, Any]) -> str:
    scratch = _scratch(document).strip()
    return (
        f"{shell_line(document)}\n\n{f'# {scratch}{chr(10)}' if scratch else ''}{_beside(document)}"
        "# Then, over QMP: migrate-set-capabilities x-colo=true (new builds: return-path=true as well), and\n"
        "# migrate-incoming unix:PATH. What is sent there is in reproduce.py, class Primary. -v shows what it runs.\n"
    )


def shell_line(document: dict[str, Any]) -> str:
    """The machine as one command line of a shell; SCRATCH and CASE stand for the folders of its files."""
    options = [Option(name=o["name"], first=o.get("first"), props=o.get("props") or {}) for o in document["options"]]
    for mark, folder in (("{workdir}", Path("SCRATCH")), (CASE_PLACE, Path("CASE"))):
        options = [filled(option, mark, folder) for option in options]
    line = CommandLine(
        binary=_program(document),
        options=(
            *(Option(name=name) for name in ("nodefaults", "no-user-config", "no-reboot", "S")),
            Option(name="display", first="none"),
            Option(name="machine", first=document["machine"]),
            Option(name="accel", first=document["accel"]),
            *options,
            *([firmware_sink()] if any(o.props.get("chardev") == "firmware" for o in options) else []),
            Option(name="serial", first="null"),
            Option(name="incoming", first="defer"),
            Option(name="qmp", first="stdio"),
        ),
    )
    return shlex.join(line.argv())


def _program(document: dict[str, Any]) -> str:
    return architecture_of(document["machine"]).program.name


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()
