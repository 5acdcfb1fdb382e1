#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Has a QEMU build the failure that this folder holds? Needs Python 3.8 or newer and nothing else.

This program plays the primary of a COLO pair: it starts QEMU as a secondary, brings it a recorded machine, loads the
recorded device state into it as a checkpoint does, and looks at what becomes of it.

The answer is one line, and the exit code:

  0    reproduced
  1    not reproduced, or failed in another way (the line says which)
  125  could not be tried: no such machine, built without COLO, does not start, does not take the recorded machine;
       or the host stood still, or ended QEMU, in each of three tries
  2    this program was used wrongly

``git bisect run`` takes 0 for the old state and 1 for the new one: to find what mended it, that is right as it is; to
find what broke it, use --invert.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import gzip
import json
import mmap
import os
import re
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

SCHEMA = "postload.case/1"
REPRODUCED, NOT_REPRODUCED, USAGE, UNTRIED = 0, 1, 2, 125

START_TIMEOUT_S = 30.0
QMP_TIMEOUT_S = 20.0
#: A QEMU that aborts closes its sockets before it is gone.
DEATH_GRACE_S = 5.0
#: A secondary whose load failed says so by an event and does not hang up.
SLICE_S = 0.25
#: A failure that comes now and then is tried until it would have come with this probability.
CONFIDENCE = 0.99
MAX_ATTEMPTS = 50
SOCKET_PATH_BYTES = 107
#: How often the host is looked at, and how late such a look may come before the time counts as lost.
TICK_S, LATE_S = 0.1, 0.5
#: Lost time is left out of every deadline. A wait is given up that stood still, or that lost, more than this.
PATIENCE_S, LONGEST_S = 45.0, 900.0
#: A host that stood still for so long may have brought about what only takes time.
STOOD_STILL_S = 1.0
#: How often an attempt is made that the host disturbed.
TRIES = 3
#: What comes of time, and not of a load alone.
TIMED = ("hang", "guest-fault", "drift", "leak")
#: Two complaints with less in common are two.
MIN_ALIKE = 0.6
#: Folders of runs that were killed are told by the process id in their name.
SCRATCH = "reproduce-"
#: Bytes a load; less than half of the smallest allocation is noise.
MIN_LEAK_BYTES = 8.0

#: Commands of a migration stream that make a secondary of a QEMU (``enum qemu_vm_cmd`` in ``migration/savevm.c``).
ENABLE_COLO, OPEN_RETURN_PATH = 8, 1
DIALECTS = (
    (ENABLE_COLO, "command ENABLE_COLO"),
    (OPEN_RETURN_PATH, "command OPEN_RETURN_PATH and capability return-path"),
)
#: ``COLOMessage`` in ``qapi/migration.json``; each is a big-endian u32 on the wire.
READY, REQUEST, REPLY, SEND, SIZE, RECEIVED, LOADED = range(7)
RETURN_PATH_SHUT = 1
_U32 = struct.Struct(">I")

GUEST_ENDS = ("SHUTDOWN", "RESET", "GUEST_PANICKED", "GUEST_CRASHLOADED")
#: One arena that only grows, and nothing cached: what is not freed is seen, what is freed is used again.
MALLOC_ENV = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:"
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000",
    "G_SLICE": "always-malloc",
}

_ASSERTIONS = (
    re.compile(r":\d+: (?P<function>[^`'\"\n]*): Assertion [`'\"](?P<what>.*)['\"] failed"),
    # musl, and the C library of macOS
    re.compile(r"Assertion failed: (?P<what>.*) \([^\s:()]+: (?P<function>\w+): \d+\)"),
    re.compile(r"Assertion failed: \((?P<what>.*)\), function (?P<function>\w+), file "),
    re.compile(r"ERROR:[^\s:]+:\d+:(?P<function>[^\s:]+): (?P<what>[^\n]+)"),
    re.compile(r"(?P<function>[\w.]+): (?P<what>code should not be reached)"),
    # error_abort
    re.compile(r"Unexpected error in (?P<function>\w+)\(\) at [^\s:]+:\d+:\s*(?P<what>[^\n]*)"),
)
_SANITIZER = re.compile(r"(ERROR|SUMMARY|WARNING): \w+Sanitizer|runtime error:")
#: What a failed load prints, most telling first.
_LOAD_ERRORS = tuple(
    re.compile(text)
    for text in (
        r"error while loading state for instance",
        r"Features 0x[0-9a-f]+ unsupported",
        r"unsupported version \d+ for",
        r"Unknown (savevm )?section",
        r"Missing section footer",
        r"Failed to load",
        r"(?i)load.*(fail|error)|(fail|error).*load",
    )
)
_NAMED = re.compile(
    r"(?:of device|unsupported version \d+ for|Unknown (?:savevm )?section or instance) '([^']+)'|footer for ([^\s,]+)"
)
#: Lines in which QEMU names what it gave up on, and lines that tell nothing by themselves.
_GIVES_UP = re.compile(r"error while loading state for instance|Failed to load (element of type )?\S+.*:|Loading VM s")
_GENERAL = re.compile(
    r"(?i)warning: |COLO: |Failed to load|load of migration|loadvm failed|error while loading|Sectio|"
    r"(post|pre) load hook |.*terminating on signal"
)
#: Newer builds say the reason behind what they gave up on.
_WHY = re.compile(r"error while loading state for instance 0x[0-9a-f]+ of device '[^']+': (.+)")
#: A time (``-msg timestamp=on``), the program's name, and that it is an error.
_PREFIX = re.compile(
    r"^(?:\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|[+-]\d{4})?:? )?"
    r"(?:(?:[^\s:]*/)?(?:qemu(?:-system)?(?:-[\w.-]+)?|kvm): )?(?:error: )?"
)
#: A word behind which the next message begins without a new line.
_NOT_ENDED = re.compile(r"(?<=\s)([^\s/]*[\w.!?)\]'\"])(?=(?:qemu-system-[\w-]+|qemu-kvm): )")
#: Somebody sent QEMU a signal that it leaves by in an orderly way (``qemu_kill_report`` in ``softmmu/runstate.c``).
_TOLD_TO_END = re.compile(r"terminating on signal \d+.*")
#: What QEMU itself shall forbid its process.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_NO_SANDBOX = re.compile(r"-sandbox|seccomp", re.IGNORECASE)
_NO_MACHINE = re.compile(r"unsupported machine type|machine type .*not (found|supported)", re.IGNORECASE)


class Untried(Exception):
    """The build cannot be asked; the text says why."""


class Disturbed(Untried):
    """The host spoiled the attempt: nothing can be said of the build."""


class Refused(Exception):
    """A QMP command failed; the text is QEMU's."""


class Broken(Exception):
    """QEMU did not answer as it should.

    ``kind`` is ``closed`` (it hung up or is gone), ``late`` (no answer in time), ``refused`` (it left COLO and stays)
    or ``unexpected`` (another answer).
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Seen:
    """What became of one session: a verdict, a sentence, and all that QEMU printed."""

    def __init__(self, verdict: str, text: str, log: str, signal_name: str = "", at_start: bool = False) -> None:
        self.verdict = verdict
        self.text = text
        self.log = log
        self.signal_name = signal_name
        self.at_start = at_start


class Case:
    """``case.json`` and the files that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.json: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SystemExit(usage(f"{folder / 'case.json'}: {error}")) from error
        if self.json.get("schema") != SCHEMA:
            raise SystemExit(usage(f"{folder / 'case.json'}: schema {self.json.get('schema')!r}, expected {SCHEMA!r}"))
        self.expect: dict[str, Any] = self.json["expect"]
        self.kind: str = self.json["kind"]
        self.running = self.json.get("guest_mode") == "running"
        #: section and name of subsections that are left out
        self.dropped: set[tuple[str, str]] = set()

    def subsections(self, section: str) -> list[str]:
        """Names of the subsections of a section, each once."""
        found = [entry["name"] for entry in self.json.get("subsections", []) if entry["section"] == section]
        return sorted(set(found), key=found.index)

    def read(self, name: str | None) -> bytes:
        """A file of the case, without the subsections that are left out; one that ends in .gz is unpacked."""
        if not name:
            return b""
        try:
            data = (self.folder / name).read_bytes()
            data = gzip.decompress(data) if name.endswith(".gz") else data
        except OSError as error:
            raise SystemExit(usage(f"{self.folder / name}: {error}")) from error
        entries = [
            (entry["offset"], entry["size"])
            for entry in self.json.get("subsections", [])
            if entry["file"] == name and (entry["section"], entry["name"]) in self.dropped
        ]
        for offset, size in sorted(entries, reverse=True):
            data = data[:offset] + data[offset + size :]
        return data


def usage(text: str) -> int:
    """Say it, and give the exit code."""
    print(f"reproduce.py: {text}", file=sys.stderr)
    return USAGE


# -- QEMU ------------------------------------------------------------------------------------------------------------


def die_with(parent: int) -> Callable[[], None]:
    """To be run in the child: SIGKILL when its parent dies (``prctl(2)``)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def guard() -> None:
        prctl(1, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(UNTRIED)

    return guard


class Host:
    """How long a process could not run, or this program could not, as a thread of its own sees it.

    A look that comes late: this program stood still. State T, t or D: the process is stopped, or the kernel holds it.
    Run delay (``schedstat``, second figure): its threads were ready and got no CPU; the one that waited longest counts.
    """

    def __init__(self, pid: int) -> None:
        self.stood_still_s = 0.0
        self._pid = pid
        self._lost_s = 0.0
        self._last = time.monotonic()
        self._waited_ns: dict[str, int] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def now_s(self) -> float:
        """A clock that stands still while the process cannot run."""
        with self._lock:
            if time.monotonic() - self._last >= TICK_S / 2:
                self._look()
            return time.monotonic() - self._lost_s

    def close(self) -> None:
        """The process is over."""
        self._over.set()

    def _follow(self) -> None:
        while not self._over.wait(TICK_S):
            self.now_s()

    def _look(self) -> None:
        now = time.monotonic()
        passed_s, self._last = now - self._last, now
        still_s = passed_s - TICK_S if passed_s > LATE_S else 0.0
        held, waited_ns = sight(self._pid)
        starved_s = max([waited_ns[name] - self._waited_ns.get(name, 0) for name in waited_ns] or [0]) / 1e9
        self._waited_ns = waited_ns
        still_s = passed_s if held else still_s
        self.stood_still_s += still_s
        self._lost_s += min(passed_s, max(still_s, starved_s))


def sight(pid: int) -> tuple[bool, dict[str, int]]:
    """Whether a process is stopped or held, and for how many nanoseconds each of its threads waited for a CPU."""
    folder, held, waited_ns = Path(f"/proc/{leader(pid)}"), False, {}
    try:
        held = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] in "TtD"
        for task in (folder / "task").iterdir():
            waited_ns[task.name] = int((task / "schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        pass  # it is gone, or a thread is, or the kernel does not count
    return held, waited_ns


class Wait:
    """One wait for QEMU: time in which it could not run does not count."""

    def __init__(self, host: Host, timeout_s: float) -> None:
        self._host = host
        self._end_s = host.now_s() + timeout_s
        self._still_s = host.stood_still_s
        self._given_up_s = time.monotonic() + timeout_s + LONGEST_S

    @property
    def left_s(self) -> float:
        """Seconds that are left, 0 when none are; raises Disturbed when the host took too many of them."""
        left_s = max(0.0, self._end_s - self._host.now_s())
        still_s = self._host.stood_still_s - self._still_s
        if left_s and (still_s > PATIENCE_S or time.monotonic() > self._given_up_s):
            raise Disturbed(f"the host kept QEMU from running for too long; it stood still for {still_s:.0f} s")
        return left_s

    @property
    def slice_s(self) -> float:
        """How long to wait before it is looked at again."""
        return min(SLICE_S, self.left_s)


class Beside:
    """A program that has a part of the machine, at its own end of a line. ``close`` ends it."""

    def __init__(self, argv: Sequence[str], line: socket.socket, own: socket.socket, part: str) -> None:
        self.line = line
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[own.fileno()],
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),
            )
        except OSError as error:
            line.close()
            raise Untried(f"{argv[0]}, which {part}, cannot be started: {error.strerror}") from error
        finally:
            own.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Tpm(Beside):
    """What is behind a ``-tpmdev``: swtpm on a socket pair, with an empty TPM."""

    def __init__(self, option: str, folder: Path) -> None:
        line, own = socket.socketpair()
        name = option.partition("chardev=")[2].partition(",")[0]
        self.argv = ["-chardev", f"socket,id={name},fd={line.fileno()}"]
        state = folder / f"{Path(name).name}.tpm"
        state.mkdir()
        argv = ["swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", f"dir={state}"]
        argv += ["--ctrl", f"type=unixio,clientfd={own.fileno()}"]
        super().__init__(argv, line, own, "the TPM of the machine is")


class VhostDisk(Beside):
    """What is behind a ``-chardev socket,fd=vhost-user-disk``: a program with an empty disk."""

    def __init__(self, option: str, folder: Path) -> None:
        said = dict(part.split("=", 1) for part in option.split(",")[1:])
        image, place = folder / f"{Path(said['id']).name}.disk", folder / f"{Path(said['id']).name}.sock"
        with image.open("wb") as file:
            file.truncate(int(said["size"]))
        line, server = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        # by a short name, however deep the folder is
        handle = os.open(folder, os.O_PATH)
        address = f"/proc/self/fd/{handle}/{place.name}"
        server.bind(address)
        server.listen(1)
        line.connect(address)
        os.close(handle)
        self.option = f"socket,id={said['id']},fd={line.fileno()}"
        export = f"type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=fd,addr.str={server.fileno()}"
        argv = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={image}"]
        argv += ["--blockdev", "driver=raw,node-name=disk,file=file", "--export", export]
        super().__init__(argv, line, server, "has a disk of the machine")


class Ivshmem:
    """What is behind a ``-chardev socket,fd=ivshmem``: memory from a server whose only client QEMU is. All that a
    server says to a new client lies in the line. ``close`` hangs up."""

    def __init__(self, option: str) -> None:
        said = dict(part.split("=", 1) for part in option.split(",")[1:])
        self._own, self.line = socket.socketpair()
        self.option = f"socket,id={said['id']},fd={self.line.fileno()}"
        memory, interrupt = os.memfd_create("ivshmem"), ctypes.CDLL(None).eventfd(0, 0)
        os.ftruncate(memory, int(said["size"]))
        # version of the protocol, number of the client, the memory, its interrupt
        for number, file in ((0, None), (0, None), (-1, memory), (0, interrupt)):
            files = [] if file is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", file))]
            self._own.sendmsg([struct.pack("<q", number)], files)
        os.close(memory)
        os.close(interrupt)

    def close(self) -> None:
        """Hang up."""
        self._own.close()


#: Makes a tap device in a network of its own, in which nobody is, and sends its files.
TAP_MAKER = """
import array, ctypes, fcntl, os, socket, struct, sys
line, queues, libc = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000) and libc.unshare(0x50000000):
    raise SystemExit(os.strerror(ctypes.get_errno()))
files = [os.open("/dev/net/tun", os.O_RDWR) for _ in range(queues)]
for file in files:
    fcntl.ioctl(file, 0x400454CA, struct.pack("=16sH22x", b"lone0", 0x5002 | (0x100 if queues > 1 else 0)))
line.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
"""


class Tap:
    """What is behind a ``-netdev tap,fd=lone``: a tap device with nobody on it. ``close`` closes its files here."""

    def __init__(self, option: str) -> None:
        said = dict(part.split("=", 1) for part in option.split(",")[1:])
        queues = int(said["queues"])
        ours, theirs = socket.socketpair()
        with ours, theirs:
            argv = [sys.executable, "-I", "-S", "-c", TAP_MAKER, str(theirs.fileno()), str(queues)]
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, pass_fds=[theirs.fileno()]
            )
            if done.returncode:
                told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                raise Untried(f"the tap device of the machine cannot be made: {told}")
            ((_, _, sent),) = ours.recvmsg(1, socket.CMSG_SPACE(4 * queues))[1]
            self.files = list(struct.unpack(f"={queues}i", sent))
        key = "fd" if queues == 1 else "fds"
        self.option = f"tap,id={said['id']},{key}={':'.join(map(str, self.files))},vhost=off"

    def close(self) -> None:
        """Close them."""
        for file in self.files:
            os.close(file)


class Qemu:
    """One QEMU with a QMP session over a socket pair and a folder of its own; ``close`` ends both."""

    def __init__(self, argv: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        tpms = [Tpm(argv[n + 1], folder) for n, word in enumerate(argv[:-1]) if word == "-tpmdev"]
        taps = {word: Tap(word) for word in argv if word.startswith("tap,") and ",fd=lone," in word}
        disks = {word: VhostDisk(word, folder) for word in argv if ",fd=vhost-user-disk," in word}
        shared = {word: Ivshmem(word) for word in argv if ",fd=ivshmem," in word}
        made = {word: tap.option for word, tap in taps.items()} | {word: disk.option for word, disk in disks.items()}
        made |= {word: each.option for word, each in shared.items()}
        argv = [made.get(word, word) for word in argv]
        self._beside: list[Beside | Ivshmem] = [*tpms, *disks.values(), *shared.values()]
        ours, theirs = socket.socketpair()
        self.argv = [
            *argv,
            *(word for tpm in tpms for word in tpm.argv),
            *("-chardev", f"socket,id=reproduce-qmp,fd={theirs.fileno()}"),
            *("-mon", "chardev=reproduce-qmp,mode=control"),
        ]
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.version = ""
        self._sock, self._data = ours, b""
        ours.setblocking(False)
        try:
            with (folder / "log").open("wb") as log:
                self.process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[
                        theirs.fileno(),
                        *(each.line.fileno() for each in self._beside),
                        *(file for tap in taps.values() for file in tap.files),
                    ],
                    env=dict(os.environ, **env),
                    start_new_session=True,
                    preexec_fn=die_with(os.getpid()),
                )
        except OSError as error:
            ours.close()
            self._end_beside()
            raise Untried(f"{argv[0]} cannot be started: {error.strerror or error}") from error
        finally:
            for inherited in (theirs, *(each.line for each in self._beside)):
                inherited.close()
            for tap in taps.values():
                tap.close()
        self.host = Host(self.process.pid)

    def greet(self) -> None:
        """Wait until it talks; raises Untried with what it printed when it does not."""
        try:
            version = self._answer(Wait(self.host, START_TIMEOUT_S), "its greeting")["QMP"]["version"]
            numbers = version["qemu"]
            package = f" ({version['package']})" if version.get("package") else ""
            self.version = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}{package}"
            self.qmp("qmp_capabilities")
        except (Broken, Refused, KeyError) as error:
            by = ended_by(self.ended(1.0), self.log())
            if by:
                raise Disturbed(f"QEMU was ended from outside by {by}") from error
            raise Untried(f"QEMU does not start: {self.log() or error}") from error

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command; raises Refused or Broken."""
        wait = Wait(self.host, QMP_TIMEOUT_S)
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        send_all(self._sock, [line], wait)
        while True:
            answer = self._answer(wait, f"{command} over QMP")
            if "error" in answer:
                raise Refused(answer["error"].get("desc", "no reason given"))
            if "return" in answer:
                return answer["return"]

    def pump(self) -> None:
        """Take in the events that are there."""
        try:
            while select.select([self._sock], [], [], 0)[0]:
                data = self._sock.recv(65536)
                if not data:
                    return
                self._data += data
        except OSError:
            pass
        while b"\n" in self._data:
            self._take()

    def _answer(self, wait: Wait, what: str) -> dict[str, Any]:
        while True:
            while b"\n" not in self._data:
                self._data += receive_some(self._sock, wait, what)
            message = self._take()
            if message is not None:
                return message

    def _take(self) -> dict[str, Any] | None:
        line, _, self._data = self._data.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
            return None
        return message

    def ended(self, within_s: float = 0.0) -> int | None:
        """Its return code, the signal's number negative; None while it lives."""
        wait, code = Wait(self.host, within_s), self.process.poll()
        while code is None and wait.left_s:
            try:
                code = self.process.wait(wait.slice_s)
            except subprocess.TimeoutExpired:
                continue
        # a shell around QEMU tells of a signal in this way
        return 128 - code if code is not None and 128 < code < 160 else code

    def log(self) -> str:
        """What it printed, the last 256 KiB."""
        try:
            data = (self.folder / "log").read_bytes()[-262144:]
        except OSError:
            return ""
        return own_lines(data.decode("utf-8", "replace")).strip()

    def close(self) -> None:
        """End it, and whatever a script around it started."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                self.process.kill()
            self.process.wait()
        self._end_beside()
        self.host.close()
        self._sock.close()

    def _end_beside(self) -> None:
        for each in self._beside:
            each.close()


def send_all(
    sock: socket.socket, buffers: Sequence[bytes], wait: Wait, watch: Callable[[], None] = lambda: None
) -> None:
    """Send on a socket that does not block; raises Broken."""
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            if not select.select([], [sock], [], wait.slice_s)[1]:
                watch()
                if not wait.left_s:
                    raise Broken("late", "QEMU takes no more data")
                continue
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Broken("closed", f"QEMU hung up ({error.strerror})") from error


def receive_some(
    sock: socket.socket, wait: Wait, what: str, count: int = 65536, watch: Callable[[], None] = lambda: None
) -> bytes:
    """At least one byte; raises Broken."""
    while True:
        if select.select([sock], [], [], wait.slice_s)[0]:
            try:
                data = sock.recv(count)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Broken("closed", f"QEMU hung up ({error.strerror})") from error
            if not data:
                raise Broken("closed", "QEMU hung up")
            return data
        watch()
        if not wait.left_s:
            raise Broken("late", f"no answer to {what} in time")


# -- the primary of COLO ---------------------------------------------------------------------------------------------


class Primary:
    """Speaks to the secondary (``colo_incoming_process_checkpoint`` in ``migration/colo.c``)."""

    def __init__(self, qemu: Qemu, timeout_s: float) -> None:
        self._qemu = qemu
        self._timeout_s = timeout_s
        self._sock = socket.socket(socket.AF_UNIX)
        self.loads = 0
        # the address of a unix socket has room for 107 bytes; a folder in /proc has a short name
        self._folder = os.open(str(qemu.folder), os.O_RDONLY | os.O_DIRECTORY)
        address = str(qemu.folder / "incoming")
        if len(os.fsencode(address)) > SOCKET_PATH_BYTES:
            address = f"/proc/{os.getpid()}/fd/{self._folder}/incoming"
        try:
            qemu.qmp("migrate-incoming", uri=f"unix:{address}")
        except Refused as error:
            raise Untried(f"migrate-incoming: {error}") from error
        wait = Wait(qemu.host, timeout_s)
        while True:
            try:
                self._sock.connect(address)
                break
            except OSError as error:
                # new builds answer the command before they listen
                if qemu.ended() is not None or not wait.left_s:
                    raise Broken("closed", f"QEMU does not listen for its incoming stream: {error}") from error
                time.sleep(0.005)
        self._sock.setblocking(False)

    def start(self, head: bytes, body: bytes, command: int) -> None:
        """The recorded machine, with the command that makes a secondary behind its head."""
        self._send(head, struct.pack(">BHH", 8, command, 0), body)
        first = self._receive("the incoming stream", 4)
        if command == OPEN_RETURN_PATH:
            kind, length = struct.unpack(">HH", first)
            if kind != RETURN_PATH_SHUT:
                raise Broken("unexpected", f"return-path message {kind} instead of SHUT")
            self._receive("the incoming stream", length)
            first = self._receive("the incoming stream", 4)
        self._expect(first, READY, "the incoming stream")

    def checkpoint(self, devices: bytes, ram: bytes = b"") -> None:
        """Load: FULL sections without their EOF, and RAM sections or nothing."""
        self._send(_U32.pack(REQUEST))
        self._expect(self._receive("the request for a checkpoint", 4), REPLY, "the request for a checkpoint")
        self._send(_U32.pack(SEND), ram, b"\0", struct.pack(">IQ", SIZE, len(devices) + 1), devices, b"\0")
        self._expect(self._receive("the device state", 4), RECEIVED, "the device state")
        self._expect(self._receive("the load", 4), LOADED, "the load")
        self.loads += 1

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
        os.close(self._folder)

    def _send(self, *buffers: bytes) -> None:
        send_all(self._sock, buffers, Wait(self._qemu.host, self._timeout_s), self._watch)

    def _receive(self, what: str, count: int) -> bytes:
        data, wait = b"", Wait(self._qemu.host, self._timeout_s)
        while len(data) < count:
            data += receive_some(self._sock, wait, what, count - len(data), self._watch)
        return data

    def _expect(self, answer: bytes, wanted: int, what: str) -> None:
        (value,) = _U32.unpack(answer)
        if value != wanted:
            raise Broken("unexpected", f"answer 0x{value:x} to {what}, expected {wanted}")

    def _watch(self) -> None:
        self._qemu.pump()
        for event in self._qemu.events:
            if event["event"] == "COLO_EXIT":
                raise Broken("refused", f"QEMU left COLO ({event.get('data', {}).get('reason', 'no reason given')})")


if TYPE_CHECKING:  # Python 3.8 cannot subscript it at run time
    Play = Callable[[Primary, Qemu], "Seen | None"]


# -- one session -----------------------------------------------------------------------------------------------------


class Session:
    """Everything that is tried on one build."""

    def __init__(self, case: Case, options: argparse.Namespace) -> None:
        self.case = case
        self.options = options
        self.about = options.qemu
        self.resets = False
        #: The last attempt: when nothing failed, the build is asked why.
        self.is_last = True
        self._dialects = list(DIALECTS)
        self._adapting = ""
        self._kept: set[tuple[str, str]] = set()
        self._left: list[list[str]] = []
        # a case that came with a bug report shall start no program of this host
        self._walls = ["-sandbox", SANDBOX] if takes_sandbox(options.qemu) else []
        self._machines = [options.machine] if options.machine else [case.json["machine"], case.json["family"]]

    def say(self, text: str) -> None:
        """With -v only."""
        if self.options.verbose:
            print(text, file=sys.stderr, flush=True)

    def run(self, play: Play) -> Seen:
        """Start QEMU as a secondary, let ``play`` load, and see what becomes of it. Raises Untried."""
        seen = self._in_any_dialect(play)
        while self._adapt(seen):
            seen = self._in_any_dialect(play)
        if differs(self.case, seen) is None and (not seen.at_start or not self.case.json["loads"]):
            return seen
        if seen.at_start:
            raise Untried(f"{self.about}: it does not take the recorded machine: {seen.text}")
        if self._fell_back and seen.verdict == "reject":
            raise Untried(
                f"{self.about}: it has no {self.case.json['machine']}, and does not take its state: {seen.text}"
            )
        if self.case.dropped and seen.verdict == "ok":
            raise Untried(f"{self.about}: it does not fail, but it does not take the whole state either")
        return seen

    def _in_any_dialect(self, play: Play) -> Seen:
        """The first dialect that gets as far as a checkpoint is kept for the rest."""
        failed = []
        for dialect in list(self._dialects):
            seen = self._in_dialect(dialect, play)
            if not seen.at_start:
                self._dialects = [dialect]
                return seen
            failed.append(seen)
            self.say(f"with {dialect[1]}: {seen.text}\n{seen.log}")
        told = next((seen for seen in failed if named(seen.log)), failed[-1])
        text = told.text if named(told.log) else "; ".join(seen.text for seen in failed)
        return Seen(told.verdict, text, told.log, told.signal_name, at_start=True)

    @property
    def _fell_back(self) -> bool:
        return self._machines[0] != self.case.json["machine"] and not self.options.machine

    def _adapt(self, seen: Seen) -> bool:
        """Leave out subsections that an older machine type does not know; True when there is something to try."""
        section = named(seen.log)
        if not self._fell_back or seen.verdict != "reject" or section is None or differs(self.case, seen) is None:
            return False
        if section != self._adapting:
            names = self.case.subsections(section)
            self._adapting, self._kept = section, set(self.case.dropped)
            self._left = [[name] for name in names] + ([names] if len(names) > 1 else [])
        if not self._left:
            return False
        names = self._left.pop(0)
        self.case.dropped = self._kept | {(section, name) for name in names}
        self.say(f"{section} is not taken; without {', '.join(names)}:")
        return True

    def _in_dialect(self, dialect: tuple[int, str], play: Play) -> Seen:
        folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
        try:
            qemu, machine = self._start(folder)
            try:
                self._capabilities(qemu, dialect[0])
                seen = self._session(qemu, machine, dialect[0], play)
                if seen.verdict in TIMED and qemu.host.stood_still_s >= STOOD_STILL_S:
                    stood_still = f"the host, or this program, stood still for {qemu.host.stood_still_s:.0f} s"
                    raise Disturbed(f"{self.about}: {stood_still}, which may be all that was seen: {seen.text}")
                return seen
            except Refused as error:
                return Seen("reject", str(error), qemu.log(), at_start=True)
            finally:
                qemu.close()
        finally:
            shutil.rmtree(str(folder), ignore_errors=True)

    def _start(self, folder: Path) -> tuple[Qemu, str]:
        """QEMU with the first machine type that it has, and that type's full name."""
        for name, size in self.case.json.get("scratch", {}).items():
            with (folder / Path(name).name).open("wb") as file:
                file.truncate(size)
        env = MALLOC_ENV if self.case.kind == "leak" else {}
        while True:
            qemu = Qemu(self._argv(self._machines[0], folder), folder, env)
            self.say(f"$ {' '.join(qemu.argv)}")
            try:
                qemu.greet()
                machine = str(qemu.qmp("qom-get", path="/machine", property="type"))
            except (Untried, Refused, Broken) as error:
                qemu.close()
                if isinstance(error, Disturbed):
                    raise
                if self._walls and _NO_SANDBOX.search(str(error)):
                    self._walls = []
                    continue
                if _NO_MACHINE.search(str(error)) and len(self._machines) > 1:
                    self.say(f"no machine {self._machines.pop(0)}, trying {self._machines[0]}")
                    continue
                raise Untried(str(error)) from error
            machine = machine[: -len("-machine")] if machine.endswith("-machine") else machine
            self.about = f"QEMU {qemu.version}, machine {machine}"
            return qemu, machine

    def _argv(self, machine: str, folder: Path) -> list[str]:
        document = dict(self.case.json, machine=machine, accel=self.options.accel or self.case.json["accel"])
        argv = command_line(document, self.options.qemu, str(folder), str(self.case.folder))
        return argv + self._walls + list(self.options.extra)

    def _capabilities(self, qemu: Qemu, command: int) -> None:
        names = ["return-path", "x-colo"] if command == OPEN_RETURN_PATH else ["x-colo"]
        try:
            known = {entry["capability"] for entry in qemu.qmp("query-migrate-capabilities")}
        except Broken as error:
            raise Untried(f"{self.about}: {error}") from error
        if "x-colo" not in known:
            raise Untried(f"{self.about}: no capability x-colo, it was built without COLO (replication) support")
        qemu.qmp("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in names])

    def _session(self, qemu: Qemu, machine: str, command: int, play: Play) -> Seen:
        timeout_s = self.options.timeout
        incoming = self.case.json["incoming"]
        head = renamed(self.case.read(incoming["head"]), machine)
        primary: Primary | None = None
        where = "in the incoming stream"
        started = False
        try:
            primary = Primary(qemu, timeout_s)
            primary.start(head, self.case.read(incoming["body"]), command)
            started, qemu.events = True, []
            told = play(primary, qemu)
            where = f"after {counted(primary.loads, 'checkpoint')}" if primary.loads else "after the incoming stream"
            qemu.qmp("query-status")
            seen = told or self._alive(qemu, where)
            if self.is_last and self.case.kind == "load" and primary.loads and seen.verdict == "ok":
                self.resets = self._forgets(primary, qemu)
            return seen
        except Broken as error:
            if primary is not None and started and not where.startswith("after"):
                where = f"checkpoint {primary.loads + 1}"
            seen = self._after(qemu, error, where)
            seen.at_start = not started
            return seen
        finally:
            if primary is not None:
                primary.close()

    def _forgets(self, primary: Primary, qemu: Qemu) -> bool:
        """Whether a checkpoint with nothing in it changes the sections of the case: the machine was reset."""
        try:
            before = saved(qemu)
            primary.checkpoint(b"")
            after = saved(qemu)
        except (Broken, Untried):
            return False
        return any(payload(before, label) != payload(after, label) for label in self.case.json["sections"])

    def _alive(self, qemu: Qemu, where: str) -> Seen:
        log = qemu.log()
        ends = [event["event"] for event in qemu.events if event["event"] in GUEST_ENDS and not by_load(event)]
        if ends and self.case.expect.get("verdict") == "guest-fault":
            return Seen("guest-fault", f"{where}: the guest ended: {', '.join(ends)}", log)
        report = next((line for line in log.splitlines() if _SANITIZER.search(line)), None)
        if report is not None:
            return Seen("crash", f"{where}: {without_program(report)}", log)
        return Seen("ok", f"all acknowledged, {where}", log)

    def _after(self, qemu: Qemu, broken: Broken, where: str) -> Seen:
        """What a session that broke comes to."""
        code = qemu.ended(DEATH_GRACE_S if broken.kind in ("closed", "unexpected") else 0.0)
        log = qemu.log()
        line = crash_line(log)
        if code is None:
            if broken.kind == "late":
                return Seen("hang", f"{where}: {broken}", log)
            return Seen("reject", f"{where}: {refusal(log) or broken}", log)
        name = signal_name(code)
        by = "" if line else ended_by(code, log)
        if by:
            raise Disturbed(f"{self.about}: QEMU was ended from outside by {by}")
        if name or line:
            how = name or f"exit status {code}"
            return Seen("crash", f"{where}: {how}: {line or 'QEMU printed no reason'}", log, name)
        if code == 0:
            return Seen("guest-fault", f"{where}: QEMU ended with status 0: the guest shut down", log)
        return Seen("reject", f"{where}: exit status {code}: {refusal(log) or 'QEMU printed no reason'}", log)


def ended_by(code: int | None, log: str) -> str:
    """Who ended a QEMU that did not end by itself; empty for any other, and for one that lives."""
    name = signal_name(code or 0)
    told = _TOLD_TO_END.search(log) if code == 0 else None
    return told.group() if told else name if name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") else ""


def undisturbed(session: Session, case: Case) -> Seen:
    """One attempt, made again where the host spoiled it. Raises Untried."""
    for left in reversed(range(TRIES)):
        try:
            return session.run(_PLAYS[case.kind](case))
        except Disturbed as error:
            if not left:
                raise
            session.say(f"{error}; trying again")
    raise AssertionError("unreachable")


def takes_sandbox(qemu: str) -> bool:
    """Whether -sandbox is tried: not on a script, and not on a build whose sanitizer starts a program to report."""
    try:
        with Path(qemu).open("rb") as file:
            if file.read(4) != b"\x7fELF":
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                return text.find(b"__asan_init") < 0 and text.find(b"__ubsan_handle") < 0
    except OSError:
        return False


def command_line(case: dict[str, Any], qemu: str, workdir: str, folder: str) -> list[str]:
    """The machine of a case as a secondary that waits; ``workdir`` is for scratch files, ``folder`` is the case's."""
    argv = [qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-S", "-display", "none"]
    argv += ["-machine", case["machine"], "-accel", case["accel"]]
    for option in case["options"]:
        argv += option_argv(option, {"{workdir}": workdir, "{case}": folder})
    # the recorded machine has one serial port, and may have a debug port of its firmware; nobody listens to them here
    if any((option.get("props") or {}).get("chardev") == "firmware" for option in case["options"]):
        argv += ["-chardev", "null,id=firmware"]
    return [*argv, "-serial", "null", "-incoming", "defer"]


def option_argv(option: dict[str, Any], filled: dict[str, str]) -> list[str]:
    """One option as arguments; in most of them a comma inside of a value is doubled."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        told = str(value)
        for name, path in filled.items():
            told = told.replace(name, path)
        return told

    name, first, props = option["name"], option.get("first"), option.get("props") or {}
    if first is not None and name in ("append", "kernel", "initrd", "incoming"):
        return [f"-{name}", text(first)]
    parts = [] if first is None else [text(first).replace(",", ",,")]
    parts += [f"{key}={text(value).replace(',', ',,')}" for key, value in props.items()]
    return [f"-{name}", ",".join(parts)] if parts else [f"-{name}"]


def renamed(head: bytes, machine: str) -> bytes:
    """The head of a stream (magic, version, u8 7, u32 n, name, subsections) for another machine type."""
    if len(head) < 13 or head[8] != 7:
        return head
    (length,) = _U32.unpack(head[9:13])
    name = machine.encode()
    return head[:9] + _U32.pack(len(name)) + name + head[13 + length :]


def by_load(event: dict[str, Any]) -> bool:
    """A reset that belongs to a load, and is not the guest's."""
    return bool(event.get("data", {}).get("reason") == "snapshot-load")


def counted(number: int, what: str) -> str:
    """1 load, 2 loads."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def signal_name(code: int) -> str:
    """Of a negative return code; empty for any other."""
    if code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# -- the same failure? -----------------------------------------------------------------------------------------------


def own_lines(log: str) -> str:
    """Each message in a line: QEMU does not end all of them."""
    return _NOT_ENDED.sub(r"\1\n", log)


def without_program(line: str) -> str:
    """Without the program's name in front."""
    return re.sub(r"^\S*qemu\S*: ", "", line.strip())


def crash_line(log: str) -> str | None:
    """The line of an assertion or of a sanitizer."""
    for line in log.splitlines():
        if _SANITIZER.search(line) or any(pattern.search(line) for pattern in _ASSERTIONS):
            return without_program(line)
    return None


def error_line(log: str) -> str | None:
    """The most telling line of a failed load."""
    lines = [without_program(line) for line in log.splitlines()]
    return next((line for pattern in _LOAD_ERRORS for line in lines if pattern.search(line)), None)


def refusal(log: str) -> str | None:
    """The most telling line of a failed load, with what was wrong where another line says that."""
    line, reason = error_line(log), complaint(log)
    return f"{line} ({reason})" if line and reason and reason not in line else line


def named(log: str) -> str | None:
    """The section that QEMU refused, as it says itself."""
    match = _NAMED.search(log)
    return (match.group(1) or match.group(2)) if match else None


def complaint(log: str) -> str:
    """What was wrong, as QEMU says before it names what it gave up on; empty when it said nothing of its own."""
    said = ""
    for line in (_PREFIX.sub("", line.strip()) for line in log.splitlines()):
        why = _WHY.search(line)
        if why and not _GENERAL.match(why.group(1)):
            return why.group(1)
        if _GIVES_UP.search(line):
            break
        if line and not _GENERAL.match(line):
            said = line
    return said


def alike(one: str, other: str) -> bool:
    """Whether two complaints are of one kind: their values differ, and their words somewhat between versions."""
    first, second = (re.sub(r"\b(?:0x)?[0-9a-fA-F]+\b", "#", text) for text in (one, other))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio() >= MIN_ALIKE


def assertion(log: str) -> tuple[str, str]:
    """Function and expression of the assertion that failed; empty when none did."""
    found = [match for match in (pattern.search(log) for pattern in _ASSERTIONS) if match]
    if not found:
        return "", ""
    # a second one is a consequence
    match = min(found, key=lambda match: match.start())
    # a compiler may say the whole signature, or add a suffix of its own
    words = match.group("function").split("(")[0].split() or [""]
    return words[-1].lstrip("*").split(".")[0], without_program(match.group("what"))


def bare(text: str | None) -> str:
    """A text without what differs between versions and runs: numbers, spaces, brackets, how the assertion is said."""
    told = re.sub(r"^\s*assertion failed:?", "", text or "")
    told = re.sub(r"\)?: \(.*\)$", "", told)  # g_assert_cmpint shows the values
    told = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", told)
    return re.sub(r"[\s()`'\"]", "", told)


def differs(case: Case, seen: Seen) -> str | None:
    """None when it is the failure of the case, else one sentence why it is not."""
    expect = case.expect
    wanted = expect["verdict"]
    if seen.verdict != wanted:
        return f"{seen.verdict} instead of {wanted}"
    if wanted == "crash":
        return _other_crash(expect, seen)
    if wanted == "reject":
        return _other_reject(expect, seen)
    return None


def _other_crash(expect: dict[str, Any], seen: Seen) -> str | None:
    function, what = assertion(seen.log)
    wanted_function, wanted = expect.get("function"), expect.get("assertion")
    name = expect.get("exit")
    if wanted and not re.match(r"SIG[A-Z]+$", wanted):
        # a sanitizer's report, or what a C library says before it aborts, stands in a line of its own
        if bare(what) != bare(wanted) and not any(bare(wanted) in bare(line) for line in seen.log.splitlines()):
            return f"another reason than {wanted!r}"
        if wanted_function and function and function != wanted_function:
            return f"the same assertion in {function} instead of {wanted_function}"
        return None
    if what:
        return "an assertion where none was expected"
    if name and seen.signal_name and seen.signal_name != name:
        return f"{seen.signal_name} instead of {name}"
    return None


def _other_reject(expect: dict[str, Any], seen: Seen) -> str | None:
    wanted = expect.get("line") or ""
    ours, theirs = named(seen.log), named(wanted)
    if ours and theirs and ours != theirs:
        return f"another device than {theirs}"
    reason, wanted_reason = complaint(seen.log), expect.get("reason") or ""
    if reason and wanted_reason:
        # one device may refuse two states for two reasons
        return None if alike(reason, wanted_reason) else f"{reason!r} instead of {wanted_reason!r}"
    if ours and theirs:
        return None
    line = error_line(seen.log)
    wanted_line = error_line(wanted)
    if line and wanted_line and bare(line) not in bare(wanted) and bare(wanted_line) not in bare(line):
        return "another error"
    return None


# -- kinds of cases --------------------------------------------------------------------------------------------------


def play_loads(case: Case) -> Play:
    """The checkpoints of the case, one behind the other."""
    run_s = float(case.json.get("run_s") or 0.0) if case.running else 0.0

    def play(primary: Primary, qemu: Qemu) -> Seen | None:
        entries = case.json["checkpoints"]
        for devices, ram, times in [(case.read(c["devices"]), case.read(c.get("ram")), c["times"]) for c in entries]:
            for number in range(times):
                primary.checkpoint(devices, b"" if number else ram)
                if run_s:
                    time.sleep(run_s)
        return None

    return play


class Memory:
    """Memory of a process: bytes in use of glibc's heap, and by the page where that cannot be walked.

    The heap is one, grown by ``brk`` alone, with nothing cached (:data:`MALLOC_ENV`).
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.exact = self._heap_bytes() is not None

    def bytes(self) -> int:
        """The least of some looks: what waits for QEMU's RCU thread is freed within 50 ms."""
        looks = []
        for _ in range(4):
            time.sleep(0.06)
            found = self._heap_bytes() if self.exact else self._private_bytes()
            looks += [] if found is None else [found]
        if not looks:
            raise Untried("the heap of QEMU cannot be looked into")
        return min(looks)

    def _private_bytes(self) -> int:
        """Private dirty memory, swapped out or not (``proc(5)``)."""
        text = Path(f"/proc/{self._pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
        return 1024 * sum(int(number) for number in re.findall(r"^(?:Private_Dirty|Swap): +(\d+) kB", text, re.M))

    def _heap_bytes(self) -> int | None:
        """Bytes in use; None where there is no such heap, or where it changes just now."""
        try:
            maps = Path(f"/proc/{self._pid}/maps").read_text(encoding="utf-8", errors="replace")
            found = re.search(r"^([0-9a-f]+)-([0-9a-f]+) .*\[heap\]$", maps, re.M)
            if found is None:
                return None
            start, end = (int(text, 16) for text in found.groups())
            with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as file:
                file.seek(start)
                return used_bytes(file.read(end - start))
        except OSError:
            return None


def used_bytes(heap: bytes) -> int | None:
    """Walk a heap: each chunk has 8 bytes of no matter here, then 8 bytes of its size, a multiple of 16, with the flag
    that the chunk before is in use in bit 0 (``malloc_chunk`` in glibc's ``malloc/malloc.c``). The last one is free."""
    words = memoryview(heap[: len(heap) & ~7]).cast("Q")
    used = at = 0
    while at + 1 < len(words):
        size = words[at + 1] & ~7
        behind = at + size // 8
        if size < 32 or size & 15:
            return None
        if behind == len(words):
            return used
        if behind + 1 >= len(words):
            return None
        used += size if words[behind + 1] & 1 else 0
        at = behind
    return None


def slope(points: Sequence[Any]) -> Any:
    """Median of the slopes between all pairs of points, and Sen's 99 % interval (Sen 1968)."""
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for n, a in enumerate(points) for b in points[n + 1 :])
    n, pairs = len(points), len(slopes)
    spread = 2.5758 * (n * (n - 1) * (2 * n + 5) / 18) ** 0.5
    low, high = max(0, int((pairs - spread) / 2) - 1), min(pairs - 1, -int(-(pairs + spread) // 2))
    return statistics.median(slopes), slopes[low], slopes[high]


def play_leak(case: Case) -> Play:
    """Checkpoints with the section, then without it: what grows more with it, for each load, is its own."""
    facts = case.json["leak"]
    repeat = int(facts["loads_per_checkpoint"])
    way = "with one load a checkpoint" if repeat == 1 else f"back to back, {repeat} in a buffer,"
    # half of what was found: a build that fixed a part of it is told by the figures
    threshold = max(float(facts["floor_bytes"]), facts["bytes_per_load"] / 2, MIN_LEAK_BYTES)
    expected = max(threshold, float(facts["bytes_per_load"]))

    def play(primary: Primary, qemu: Qemu) -> Seen | None:
        memory = Memory(leader(qemu.process.pid))
        # by the page a batch has to leave at least a quarter of a megabyte, which is 64 pages
        size = max(4, -(-400 // repeat)) if repeat > 1 else 50
        size = size if memory.exact else max(size, min(400, -(-int(262144 / expected) // repeat)))

        def grown(buffer: bytes) -> Any:
            points = []
            for batch in range(9):
                for _ in range(size):
                    primary.checkpoint(buffer)
                qemu.pump()
                qemu.events.clear()
                # the first batch is a warm-up: a secondary keeps the largest buffer that it got
                points += [(batch * size * repeat, memory.bytes())] if batch else []
            return slope(points)

        plain, loaded = case.read(case.json["control"]), case.read(case.json["checkpoints"][0]["devices"])
        base, base_low, base_high = grown(plain)
        found, low, high = grown(loaded)
        found, low, high = found - base, low - base_high, high - base_low
        text = (
            f"{way} {found:,.1f} [{low:,.1f}, {high:,.1f}] bytes of {'heap' if memory.exact else 'private memory'} "
            f"stay for each load of {', '.join(case.json['sections'])}, over {7 * size * repeat:,} loads; "
            f"more than {threshold:,.1f} is a leak"
        )
        return Seen("leak" if found > threshold else "ok", text, qemu.log())

    return play


def leader(pid: int) -> int:
    """The process with the most memory among ``pid`` and its children: a script may stand in front of QEMU."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return pid
    return max([pid, *(leader(int(child)) for child in children)], key=resident)


def resident(pid: int) -> int:
    """Pages in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def play_drift(case: Case) -> Play:
    """The state that QEMU saves after the first checkpoint, and after the last."""
    entries = [entry for entry in case.json["checkpoints"] for _ in range(entry.get("times", 1))]
    fields = case.json["fields"]

    def play(primary: Primary, qemu: Qemu) -> Seen | None:
        states = []
        for number, entry in enumerate(entries):
            primary.checkpoint(case.read(entry["devices"]), case.read(entry.get("ram")))
            if number in (0, len(entries) - 1):
                states.append(saved(qemu))
        told = [text for text in (moved(field, states[0], states[-1]) for field in fields) if text]
        if told:
            return Seen("drift", f"after {counted(len(entries), 'checkpoint')}: {'; '.join(told)}", qemu.log())
        return Seen("ok", f"after {counted(len(entries), 'checkpoint')} the state is that after the first", qemu.log())

    return play


def saved(qemu: Qemu) -> bytes:
    """The device state as QEMU saves it."""
    file = qemu.folder / "saved"
    time.sleep(0.01)  # timers that the load armed for "now" fire in this time
    try:
        qemu.qmp("stop")
        # live: else QEMU inactivates the disks of a machine that is stopped already, which cannot be done twice
        qemu.qmp("xen-save-devices-state", filename=str(file), live=False)
        return file.read_bytes()
    except (Refused, OSError) as error:
        raise Untried(f"xen-save-devices-state: {error}") from error
    finally:
        if file.exists():
            file.unlink()


def payload(state: bytes, label: str) -> bytes | None:
    """A section's payload out of a saved state: between its header and the footer with its number."""
    idstr, _, instance = label.partition("#")
    for number in (int(instance or 0), int(instance or 0) & 0xFFFFFFFF):
        match = re.search(
            rb"\x04(?P<id>....)" + re.escape(bytes([len(idstr)]) + idstr.encode() + _U32.pack(number)) + rb"....",
            state,
            re.DOTALL,
        )
        if match:
            end = state.find(b"\x7e" + match.group("id"), match.end())
            return state[match.end() : end] if end >= 0 else None
    return None


def moved(field: dict[str, Any], first: bytes, last: bytes) -> str | None:
    """One clause when a field is not what it was."""
    old, new = payload(first, field["section"]), payload(last, field["section"])
    if old is None or new is None:
        raise Untried(f"section {field['section']} is not in the state that QEMU saves")
    start = field["offset"]
    size = field.get("size") or 1
    if start is None:
        same, was, now = old == new, b"", b""
    else:
        was, now = old[start : start + size], new[start : start + size]
        same = was == now
    if same:
        return None
    values = f" from {was.hex()} to {now.hex()}" if was != now else ""
    return f"{field['path']} of {field['section']} goes{values}"


# -- the command -----------------------------------------------------------------------------------------------------

_PLAYS = {"load": play_loads, "leak": play_leak, "drift": play_drift}


def attempts(case: Case) -> int:
    """How often a case that fails k of n times is tried before it counts as gone."""
    rate = case.json.get("rate") or {}
    failed, tried = rate.get("failed", 1), rate.get("tried", 1)
    if not 0 < failed < tried:
        return 1
    passed, count = 1.0 - failed / tried, 1
    while passed**count > 1 - CONFIDENCE and count < MAX_ATTEMPTS:
        count += 1
    return count


def answer(case: Case, options: argparse.Namespace) -> int:
    """Try as often as the case needs, print one line, give the exit code."""
    session = Session(case, options)
    count = options.attempts or attempts(case)
    other = ""
    for number in range(1, count + 1):
        session.is_last = number == count
        seen = undisturbed(session, case)
        session.say(f"attempt {number}: {seen.verdict}: {seen.text}\n{seen.log}")
        why = differs(case, seen)
        if why is None:
            tries = f" (attempt {number} of {count})" if count > 1 else ""
            if case.dropped:
                tries += f" (the state without subsection {', '.join(sorted(name for _, name in case.dropped))})"
            print(f"reproduced: {session.about}: {seen.text}{tries}")
            return REPRODUCED
        if seen.verdict != "ok":
            other = f"{seen.text} ({why})"
    tries = f" in {count} attempts" if count > 1 else ""
    if other:
        print(f"not reproduced, but failed differently{tries}: {session.about}: {other}")
        return NOT_REPRODUCED
    why = "; this build resets the machine before each checkpoint's load" if session.resets else ""
    print(f"not reproduced{tries}: {session.about}: {seen.text}{why}")
    return NOT_REPRODUCED


def sweep() -> None:
    """Remove what runs left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        owner = folder.name[len(SCRATCH) :].split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(str(folder), ignore_errors=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what stands behind ``--`` is for QEMU."""
    ours, extra = list(arguments), []
    if "--" in ours:
        at = ours.index("--")
        ours, extra = ours[:at], ours[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("qemu", metavar="QEMU", help="the build to try; options for it stand behind --")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the command line and what QEMU prints")
    parser.add_argument("--timeout", type=float, default=20.0, metavar="S", help="deadline for each answer [20]")
    parser.add_argument("--machine", help="this machine type, and no other [as recorded, else the build's newest]")
    parser.add_argument("--accel", help="accelerator [as recorded]")
    parser.add_argument("--attempts", type=int, default=0, metavar="N", help="tries [as many as the case needs]")
    parser.add_argument("--invert", action="store_true", help="exit 1 when reproduced and 0 when not")
    parser.add_argument("--case", type=Path, default=None, metavar="DIR", help="folder of case.json [beside this file]")
    options = parser.parse_args(ours)
    options.extra = extra
    return options


def _terminated(number: int, _: object) -> NoReturn:
    # so that every finally is run: QEMU ends, its folder goes
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer for one build."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    sweep()
    case = Case((options.case or Path(__file__).parent).resolve())
    # a program from PATH, or a file here
    options.qemu = shutil.which(options.qemu) or options.qemu
    try:
        code = answer(case, options)
        return {REPRODUCED: NOT_REPRODUCED, NOT_REPRODUCED: REPRODUCED}[code] if options.invert else code
    except Untried as error:
        print(f"could not be tried: {' / '.join(str(error).splitlines())}")
        return UNTRIED
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
