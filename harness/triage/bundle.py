# SPDX-License-Identifier: GPL-2.0-or-later
"""A bundle: a case in a folder that can be attached to a bug report and run without this program.

::

    README.md          what it is, how to run it, what to expect
    reproduce.py       ``harness/triage/reproduce.py``: Python's standard library only
    case.json          the case; head.bin, body.bin, c1.bin, ... are its bytes (.gz where that is smaller)
    qemu-command.txt   the machine as a command line
    issue.md           QEMU's template for bugs, filled in
    log.txt            what QEMU printed
    backtrace.txt      where one is known
    allocations.txt    of a leak, where it is known who allocates what stays

``case.json`` of a bundle has one key more than that of a case: ``subsections``, where in which file the optional parts
of sections lie, so that a build which knows an older machine type only can be given the state without them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.arch import architecture_of
from harness.devices.device import section_label
from harness.errors import HarnessError, HostError, StreamError, UsageError
from harness.files import temp_dir
from harness.names import AS_RECORDED
from harness.packs.pack import StatePack, incoming_body
from harness.qemu.hosttime import run_watched
from harness.qemu.installed import launched
from harness.qemu.process import guarded, scratch_folder
from harness.qemu.walls import script_confined
from harness.results.document import Cell, find_cell
from harness.results.folder import folder_of, read_matrix
from harness.results.outcome import Outcome
from harness.results.signature import signature_of_cell
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, awake, encode, label_of, only, sections_for, without
from harness.stream import wire
from harness.stream.model import Stream
from harness.stream.reader import read_stream
from harness.stream.vmdesc import DeviceDesc, StructDesc, VmDesc
from harness.stream.writer import encode_vmdesc
from harness.triage.allocations import Allocations, AllocationsHow, find_allocations, kept_allocations
from harness.triage.backtrace import Backtrace, backtrace_by
from harness.triage.case import BODY_FILE, CASE_FILE, CONTROL_FILE, Case, CaseCheckpoint, Expect, Rate, Spent
from harness.triage.cells import at_start, phase_of
from harness.triage.driftcase import drift_cases
from harness.triage.elsewhere import check_case, loader_path, made_here, remember_case
from harness.triage.smallest import line_of, options_of_case, reason_of, recorded_by
from harness.triage.stack import kept_stack

SCRIPT = "reproduce.py"
#: The script itself. It is a program of its own: nothing here imports it, and it imports nothing of this.
_SCRIPT_FILE = Path(__file__).with_name(SCRIPT)
REPRODUCED, NOT_REPRODUCED, UNTRIED = 0, 1, 125
#: A file that is larger is packed, where that makes it a good deal smaller.
GZIP_ABOVE_BYTES = 64 * 1024
#: What a bug tracker takes without a word.
ATTACHABLE_BYTES = 1_000_000
#: A script that is stuck; its own waits have deadlines.
SCRIPT_TIMEOUT_S = 600.0
#: For one answer of a QEMU under gdb, which reads symbols first.
GDB_TIMEOUT_S = 40.0
#: Options that make devices under test or feed the guest; a machine without them is the same board.
_DEVICE_OPTIONS = frozenset({"device", "netdev", "blockdev", "drive", "chardev", "object"})
_GUEST_OPTIONS = frozenset({"kernel", "initrd", "append"})
_EOF = b"\0"
_NO_VMDESC = encode_vmdesc(b"{}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptAnswer:
    """What the script said of one QEMU.

    :param code: 0 reproduced, 1 not, 125 could not be tried
    :param line: its one line
    """

    qemu: str
    code: int
    line: str
    seconds: float = 0.0

    @property
    def reproduced(self) -> bool:
        """Whether it is there."""
        return self.code == REPRODUCED

    @property
    def tried(self) -> bool:
        """Whether it could be asked."""
        return self.code in (REPRODUCED, NOT_REPRODUCED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleMaterial:
    """What a bundle is made of.

    :param outcome: of the cell that it is about
    :param log: what QEMU printed
    :param backtrace: None where none is known
    :param allocations: of a leak, who allocates what stays, or why nobody can tell
    :param guest: what was recorded, in words
    :param subsections: see :func:`subsections`
    """

    case: Case
    outcome: Outcome | None = None
    log: str = ""
    backtrace: Backtrace | None = None
    allocations: Allocations | None = None
    guest: str = ""
    subsections: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A written bundle.

    :param answer: of the QEMU that it was found on
    :param others: of further QEMUs
    :param changed: the program by the name of that QEMU is another one now
    """

    folder: Path
    size_bytes: int
    answer: ScriptAnswer
    others: tuple[ScriptAnswer, ...] = ()
    changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Makes the texts of a bundle; triage knows none.

    :param describe: further files, name to content, from material, ``case.json`` and what the QEMUs said
    :param sentence: what happened in a cell that was not minimised
    """

    describe: Callable[[BundleMaterial, dict[str, Any], ScriptAnswer, Sequence[ScriptAnswer]], dict[str, str]]
    sentence: Callable[[Cell], str]


def run_script(folder: Path, qemu: str, *options: str, foreign: bool = False) -> ScriptAnswer:
    """Run a case on one QEMU by the script of this program: a bundle's own may be anybody's.

    :param foreign: the case came from elsewhere: script and QEMU stand behind walls
    :raises HarnessError: it does not come to an answer
    """
    argv = [sys.executable, "-I", str(_SCRIPT_FILE), qemu, "--case", str(folder), *options]
    started = time.monotonic()
    try:
        with scratch_folder() as scratch:
            walls = script_confined(qemu, (_SCRIPT_FILE, folder.resolve()), scratch) if foreign else None
            done = run_watched(
                guarded(argv) if walls is None else walls.argv(argv),
                timeout_s=SCRIPT_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "TMPDIR": str(scratch)},
            )
    except subprocess.TimeoutExpired as error:
        raise HarnessError(f"{_SCRIPT_FILE} {qemu}: no answer within {SCRIPT_TIMEOUT_S:g} s") from error
    line = done.stdout.strip().splitlines()
    if done.returncode not in (REPRODUCED, NOT_REPRODUCED, UNTRIED) or not line:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise HarnessError(f"{_SCRIPT_FILE} {qemu}: exit code {done.returncode}: {said[-1]}")
    return ScriptAnswer(qemu=qemu, code=done.returncode, line=line[-1], seconds=time.monotonic() - started)


# -- making it small -------------------------------------------------------------------------------------------------


def lean(case: Case, still: Callable[[Case], bool]) -> Case:
    """The case on the barest machine that still shows it: fewer devices, fewer sections, no RAM, no guest.

    :param still: tries a case
    :return: the first of :func:`candidates` that fails as it should; the case itself when none does
    """
    return next((candidate for candidate in candidates(case) if still(candidate)), case)


def candidates(case: Case) -> Iterator[Case]:
    """Barer cases, the barest first. None of a guest that runs: it needs what it has."""
    if case.guest_mode != "parked":
        return
    stream = stream_of(case)
    if stream is not None:
        cpu = architecture_of(case.machine).cpu_sections
        needed = [s for s in stream.devices if label_of(s) in case.sections or s.idstr in cpu]
        few = encode(needed) + _EOF + _NO_VMDESC
        yield _without_options(replace(case, body=few, ram_pages=0), _DEVICE_OPTIONS | _GUEST_OPTIONS)
        yield _without_options(replace(case, body=few, ram_pages=0), _GUEST_OPTIONS)
        yield _without_options(
            replace(case, body=encode(stream.devices) + _EOF + _NO_VMDESC, ram_pages=0), _GUEST_OPTIONS
        )
    if any(option.name in _GUEST_OPTIONS for option in case.options):
        yield _without_options(case, _GUEST_OPTIONS)


def stream_of(case: Case) -> Stream | None:
    """The recorded stream that the case begins with; None when it is not described."""
    try:
        stream = read_stream(case.head + case.body)
    except StreamError:
        return None
    return stream if stream.vmdesc is not None and stream.vmdesc.devices else None


def _without_options(case: Case, names: frozenset[str]) -> Case:
    options = tuple(option for option in case.options if option.name not in names)
    text = repr(options)
    return replace(
        case,
        options=options,
        scratch={name: size for name, size in case.scratch.items() if name in text},
        files={name: path for name, path in case.files.items() if name in text},
    )


# -- subsections -----------------------------------------------------------------------------------------------------


def subsections(case: Case, vmdesc: VmDesc) -> list[dict[str, Any]]:
    """Where the outermost subsections of the case's device sections lie in its files.

    A section of a small case need not be as long as it was recorded, so they are looked for by their headers.

    :param vmdesc: describes the sections as they were recorded
    """
    files = [(BODY_FILE, case.body)]
    files += [(f"c{n}.bin", checkpoint.devices) for n, checkpoint in enumerate(case.checkpoints, start=1)]
    files += [] if case.control is None else [(CONTROL_FILE, case.control)]
    return [
        {"file": name, "section": section_label(*device.key), "name": each.vmsd_name, "offset": at, "size": size}
        for device in vmdesc.devices
        for each in {each.vmsd_name: each for each in _outermost(device)}.values()
        for name, data in files
        for start, stop in _payloads(data, device)
        for at, size in _places(data, start, stop, each)
    ]


def _outermost(desc: DeviceDesc | StructDesc) -> Iterator[StructDesc]:
    yield from desc.subsections
    for each in desc.fields:
        if each.struct is not None:
            yield from _outermost(each.struct)


def _payloads(data: bytes, device: DeviceDesc) -> Iterator[tuple[int, int]]:
    """First byte and end of each payload of a section: from its header to the footer with its number."""
    idstr = device.name.encode()
    header = bytes([len(idstr)]) + idstr + wire.U32.pack(device.instance_id & 0xFFFFFFFF)
    at = data.find(header, wire.SECTION_ID.size)
    while at >= 0:
        start = at + len(header) + wire.U32.size
        stop = data.find(bytes([wire.FOOTER]) + data[at - wire.U32.size : at], start)
        if stop >= 0 and data[at - wire.SECTION_ID.size] == wire.SectionType.FULL:
            yield start, stop
        at = data.find(header, start)


def _places(data: bytes, start: int, stop: int, desc: StructDesc) -> Iterator[tuple[int, int]]:
    name = desc.vmsd_name.encode()
    header = bytes([wire.SectionType.SUBSECTION, len(name)]) + name + wire.U32.pack((desc.version or 0) & 0xFFFFFFFF)
    at = data.find(header, start, stop)
    while at >= 0:
        yield at, desc.as_subsection_bytes
        at = data.find(header, at + desc.as_subsection_bytes, stop)


# -- writing it ------------------------------------------------------------------------------------------------------


def write_bundle(
    material: BundleMaterial, folder: Path, describe: Callable[[Path, dict[str, Any]], dict[str, str]]
) -> Path:
    """Write the folder; it appears whole.

    :param describe: from the bundle as it stands, where its script can be run already, and its ``case.json``, to
        further files, name to content
    :raises UsageError: there is something already
    :raises HostError: no space, or the place cannot be written
    """
    check_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temp_dir(folder.parent) as temp:
            new = temp / "bundle"
            document = _write_case(material, new)
            script = new / SCRIPT
            script.write_bytes(_SCRIPT_FILE.read_bytes())
            script.chmod(0o755)
            for name, text in describe(new, document).items():
                (new / name).write_text(text)
            new.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            new.rename(folder)
    except OSError as error:
        raise HostError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def check_new(folder: Path) -> None:
    """A bundle never overwrites: its folder is new, or empty.

    :raises UsageError: there is something
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: it exists already; a bundle does not overwrite anything")


def _write_case(material: BundleMaterial, folder: Path) -> dict[str, Any]:
    material.case.save(folder)
    document: dict[str, Any] = json.loads((folder / CASE_FILE).read_text())
    document["subsections"] = list(material.subsections)
    for key in ("qemu", "recorded"):
        # where it lies on this host is nobody's business
        document[key] = {name: value for name, value in (document[key] or {}).items() if name != "path"} or None
    packed = {name: name + ".gz" for name in _data_files(document) if _pack(folder / name)}
    document["incoming"] = {key: packed.get(name, name) for key, name in document["incoming"].items()}
    document["checkpoints"] = [
        {**entry, **{key: packed.get(entry[key], entry[key]) for key in ("devices", "ram")}}
        for entry in document["checkpoints"]
    ]
    document["control"] = packed.get(document["control"], document["control"])
    for entry in document["subsections"]:
        entry["file"] = packed.get(entry["file"], entry["file"])
    (folder / CASE_FILE).write_text(json.dumps(document, indent=1) + "\n")
    return document


def _data_files(document: dict[str, Any]) -> list[str]:
    """Files of bytes that the script reads itself; what QEMU reads stays as it is."""
    names = [*document["incoming"].values(), document["control"]]
    names += [entry[key] for entry in document["checkpoints"] for key in ("devices", "ram")]
    return [name for name in names if name]


def _pack(path: Path) -> bool:
    data = path.read_bytes()
    if len(data) <= GZIP_ABOVE_BYTES:
        return False
    packed = gzip.compress(data, mtime=0)
    if len(packed) > len(data) * 0.8:
        return False
    path.with_name(path.name + ".gz").write_bytes(packed)
    path.unlink()
    return True


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# -- from a cell to its bundle ---------------------------------------------------------------------------------------


def bundle_cell(text: str, run: Path, out: Path, writing: Writing, others: Sequence[str] = ()) -> Bundle:
    """Make the bundle of a cell and try it.

    :param text: id of a cell of the run, or a part of it
    :param run: folder with ``matrix.json`` and, where the case was minimised, ``cases``
    :param out: the bundle's folder, new or empty
    :param writing: makes its texts
    :param others: QEMUs that it is tried on too
    :raises UsageError: no such cell, it is no finding, or ``out`` is not empty
    :raises PackError: its state pack is gone or damaged
    :raises HarnessError: the script came to no answer
    """
    check_new(out)
    cell = find_cell(read_matrix(run), text)
    if not cell.verdict.is_finding:
        raise UsageError(f"{cell.id}: {cell.verdict}; there is nothing to report")
    kept, qemu = kept_case(run, cell), loader_path(cell)
    foreign = kept is not None and not made_here(kept)
    if kept:
        check_case(kept, [qemu, *others])
    with StatePack(Path(cell.pack)) if cell.pack else contextlib.nullcontext() as pack:
        case = Case.load(kept) if kept else replace(whole_case(cell, pack), sentence=writing.sentence(cell))
        drifts = cell.lane == "drift" and pack is not None and not kept
        cases = list(drift_cases(cell, pack, case)) if drifts and pack else [case]
        vmdesc = _described(case, cell, pack)
        guest = _guest_words(pack) if pack else ""
        for loader in (qemu, *others):
            if pack:
                pack.machine.check(loader)
        foreign = foreign or (pack is not None and pack.foreign)
        allocations = _allocations(run, cell, case, pack, qemu, foreign=foreign)

    def still(small: Case) -> bool:
        return _still(small, qemu, foreign=foreign)

    # a minimised case is small already, and a leak takes its time
    if kept and len(case.body) < ATTACHABLE_BYTES:
        bare = case
    else:
        bare = next((small for each in cases if (small := lean(each, still)) is not each), cases[0])
    material = BundleMaterial(
        case=bare,
        outcome=cell.outcome,
        log=cell.outcome.log,
        # under gdb there would be no walls
        backtrace=_known_backtrace(run, cell) or (None if foreign else _backtrace(bare, qemu)),
        allocations=allocations,
        guest=guest,
        subsections=tuple(subsections(bare, vmdesc)) if vmdesc else (),
    )
    answers: list[ScriptAnswer] = []

    def texts(folder: Path, document: dict[str, Any]) -> dict[str, str]:
        answers.extend(run_script(folder, path, foreign=foreign) for path in (qemu, *others))
        return writing.describe(material, document, answers[0], answers[1:])

    write_bundle(material, out, texts)
    remember_case(out)
    return Bundle(
        folder=out,
        size_bytes=size_of(out),
        answer=answers[0],
        others=tuple(answers[1:]),
        changed=Path(qemu).is_file() and launched(Path(qemu)).sha256 != cell.load_qemu.sha256,
    )


def kept_case(run: Path, cell: Cell) -> Path | None:
    """The folder of the cell's minimised case, None where there is none."""
    for file in sorted(folder_of(run).glob(f"cases/*/{CASE_FILE}")):
        try:
            if json.loads(file.read_bytes()).get("cell") == cell.id:
                return file.parent
        except (OSError, ValueError, AttributeError):
            continue
    return None


def whole_case(cell: Cell, pack: StatePack | None) -> Case:
    """The case of a cell as it was found: blamed sections, or all, into a parked guest as often as it took; of a
    migration the incoming stream alone.

    :raises UsageError: the cell is of another kind, or its state pack is not known
    """
    outcome = cell.outcome
    by_load = cell.by_load or cell.lane in ("drift", *AS_RECORDED)
    if not by_load or not outcome.causes or cell.verdict is Verdict.GUEST_FAULT or pack is None:
        if by_load or cell.lane == "leak":
            raise UsageError(f"{cell.id}: there is no case of it yet: postload minimise makes one")
        raise UsageError(
            f"{cell.id}: a finding of oracle {cell.lane} cannot be bundled: expected one of a load, a migration, a "
            "drift or a leak; postload explain has all that is known of it, and the line that shows it again"
        )
    recording = pack.recordings[phase_of(cell)]
    excluded, labels = frozenset(cell.left_out), frozenset(cell.blamed)
    parked = sections_for(recording, GuestMode.PARKED)
    devices = encode(only(parked, labels) or without(parked, excluded))
    ram = pack.ram_whole(recording.name)
    options, files = options_of_case(pack.machine.options)
    loads = 0 if at_start(cell) else max(1, outcome.load or 1)
    # what this QEMU refuses of another's state would fail before it, and differently
    started = without(parked, excluded) if recorded_by(cell) or not loads else parked
    described = replace(recording, vmdesc=recording.vmdesc.only({section.key for section in started}))
    signature = signature_of_cell(cell)
    return Case(
        cell=cell.id,
        verdict=cell.verdict,
        failure_class=cell.failure_class,
        kind="load",
        signature=signature.to_json() if signature else None,
        expect=Expect(
            verdict=cell.verdict,
            exit=outcome.exit if outcome.exit and outcome.exit.startswith("SIG") else None,
            function=signature.function or None if signature else None,
            assertion=signature.assertion or None if signature else None,
            reason=reason_of(cell),
            line=line_of(cell),
        ),
        qemu=cell.load_qemu.to_json(),
        machine=cell.machine,
        family=pack.manifest.family,
        accel=cell.accel,
        options=options,
        scratch=dict(pack.machine.files),
        guest_mode=GuestMode.PARKED,
        run_s=0.0,
        dialect_resets=False,
        head=recording.head,
        body=b"".join(incoming_body(described, ram, encode(awake(started)))),
        checkpoints=(CaseCheckpoint(devices=devices, times=loads),) if loads else (),
        loads=loads,
        back_to_back=False,
        sections=tuple(sorted(labels)),
        fields=(),
        ram_pages=sum(1 for entry in recording.index if entry),
        rate=Rate(failed=1, tried=1),
        spent=Spent(),
        recorded=recorded_by(cell),
        files=files,
    )


def _still(candidate: Case, qemu: str, *, foreign: bool) -> bool:
    with scratch_folder() as scratch:
        return run_script(candidate.save(scratch / "case"), qemu, foreign=foreign).reproduced


def _described(case: Case, cell: Cell, pack: StatePack | None) -> VmDesc | None:
    """A description of the case's sections: that of the recording, else the case's own."""
    phase = phase_of(cell)
    if pack and phase in pack.recordings:
        return pack.recordings[phase].vmdesc
    stream = stream_of(case)
    return stream.vmdesc if stream else None


def _guest_words(pack: StatePack) -> str:
    kernel = next((p for p in pack.manifest.guest.get("packages", []) if str(p).startswith("linux-image")), None)
    return " ".join(str(word) for word in (pack.manifest.guest.get("name"), kernel) if word)


def _backtrace(case: Case, qemu: str) -> Backtrace | None:
    """The stack of a crash, by running the script once more under gdb; None where there is none."""
    if case.verdict != Verdict.CRASH or not Path(qemu).is_file():
        return None
    with scratch_folder() as scratch:
        folder = case.save(scratch / "case")

        def run(launcher: Path, _: Callable[[], None]) -> str:
            try:
                return run_script(folder, str(launcher), "--timeout", f"{GDB_TIMEOUT_S:g}").line
            except HarnessError as error:
                return str(error)

        found = backtrace_by(run, Path(qemu), answer_timeout_s=GDB_TIMEOUT_S)
    return found if found.frames else None


def _allocations(
    run: Path, cell: Cell, case: Case, pack: StatePack | None, qemu: str, *, foreign: bool
) -> Allocations | None:
    """Who allocates what the sections of a leak's case leave behind; None of another case."""
    if case.kind != "leak":
        return None
    found = kept_allocations(run, cell)
    if found is None and foreign:
        return Allocations(how=AllocationsHow.FOREIGN)
    if found is None and pack is None:
        return Allocations(how=AllocationsHow.NO_PACK)
    if found is None:
        assert pack is not None  # it was compared
        found = find_allocations(cell, run, pack, Path(qemu))
    return found.of(case.sections)


def _known_backtrace(run: Path, cell: Cell) -> Backtrace | None:
    """The stack, where somebody has looked at it already."""
    found = kept_stack(run, cell)
    return found if found and found.frames else None
