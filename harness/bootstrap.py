# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs what is missing on this machine, then becomes ``postload`` or ``tox``.

It runs before anything is installed: the standard library only, and no syntax newer than Python 3.8, so that
an old Python reaches the sentence that says it is too old.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from harness.errors import DeadlineError, HostError, MissingError, PostloadError

HELP = """\
usage: python3 -m harness.bootstrap COMMAND [ARGUMENT]...

Installs what is missing, then runs COMMAND. With nothing to install it starts COMMAND at once.

  matrix [ARGUMENT]...     run 'postload matrix'; so do record, replay, inspect, doctor, ...
  test [ARGUMENT]...       run the tests: 'tox' with these arguments
  setup                    only install

What may be installed:
  Debian packages          qemu-system-x86, python3-venv, and what else is missing, by apt-get as root or
                           through sudo; inspect, doctor and history need no QEMU and
                           install none
  .venv                    in this folder: the project with its Python packages, and tox, by pip from PyPI
Nothing else is changed; without .venv the next call makes it again.

Exit codes: 3 when something cannot be installed (the message says what to type), else those of COMMAND.
"""

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STATE = VENV / "setup.json"
LOG = VENV / "setup.log"

OLDEST_PYTHON = (3, 11)
UPDATE_TIMEOUT_S = 600.0
INSTALL_TIMEOUT_S = 3600.0
ADOPT_TIMEOUT_S = 60.0
LOCK_TIMEOUT_S = 1800.0
# A fresh machine often upgrades itself in the background: apt waits for that instead of failing.
DPKG_LOCK_TIMEOUT_S = 300

_APT = ("apt-get", "install", "-y", "--no-install-recommends")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_POSTGRESQL = Path("/usr/lib/postgresql")
_WITHOUT_HOST = ("inspect", "doctor", "known", "history", "compare", "baseline", "import", "prune", "merge", "report")
#: They repeat a break under gdb.
_WITH_STACKS = ("test", "explain", "bundle")
_UNFETCHED = re.compile(r"^[EW]: Failed to fetch \S+?://([^/\s]+)\S*\s+(.*)$", re.MULTILINE)
_FIRST_REASON = re.compile(r"^Err:.*\n[ \t]+(\S.*)$", re.MULTILINE)
_UNREACHED = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|MaxRetryError|NameResolutionError"
    r"|Failed to establish|Connection broken|connection broken"
)


class Need(NamedTuple):
    """Something that the host must have: what it is called anywhere, and Debian's package of it."""

    what: str
    package: str


def main(argv: Sequence[str]) -> int:
    """Set up and become the command; returns only for help, ``setup`` and errors.

    :returns: the exit code: 0, 2 (usage), 3 (something is missing) or 130 (interrupted)
    """
    if sys.version_info < OLDEST_PYTHON:
        has = ".".join(map(str, sys.version_info[:3]))
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return _fail(f"Python {wanted} or newer is needed, and {sys.executable} is {has}", 3)
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0].startswith("-"):
        return _fail(f"the command comes first, not {argv[0]}: see python3 -m harness.bootstrap --help", 2)
    try:
        return _run(argv[0], argv[1:])
    except PostloadError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(f"the set-up failed: {error}", 3)
    except KeyboardInterrupt:
        return _fail("interrupted; the same line goes on from here", 130)


def _run(command: str, arguments: Sequence[str]) -> int:
    install_packages(missing_needs(command, arguments))
    parts = {"test": ("tox",), "setup": ("project", "tox")}.get(command, ("project",))
    prepare_venv(parts)
    if command == "setup":
        return 0
    if command == "test":
        os.chdir(ROOT)
        _become([str(VENV / "bin" / "tox"), *arguments])
    return _become([str(VENV / "bin" / "postload"), command, *arguments])


def _become(argv: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)


def _fail(message: str, code: int) -> int:
    print(f"postload: {message}", file=sys.stderr)
    return code


def _say(message: str) -> None:
    print(f"postload set-up: {message}", file=sys.stderr, flush=True)


# --- Debian packages -------------------------------------------------------------------------------------


def missing_needs(command: str, arguments: Sequence[str] = ()) -> list[Need]:
    """What this host lacks for a command; an empty list is the usual answer."""
    needs = [] if _venv_works() else _missing_for_venv()
    if command in _WITHOUT_HOST or "--help" in arguments:
        return needs
    if not _names_a_qemu(arguments) and shutil.which("qemu-system-x86_64") is None:
        needs.append(Need("qemu-system-x86_64", "qemu-system-x86"))
    programs = [("setpriv", "util-linux"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")]
    if command == "test":
        programs += [("qemu-system-aarch64", "qemu-system-arm"), ("swtpm", "swtpm"), ("swtpm_setup", "swtpm-tools")]
        programs += [("virsh", "libvirt-clients"), ("virt-qemu-run", "libvirt-daemon-driver-qemu")]
        # on Debian 12 it comes with QEMU itself
        programs.append(("qemu-storage-daemon", "qemu-utils"))
    if command in _WITH_STACKS:
        programs.append(("gdb", "gdb"))
    for program, package in programs:
        if shutil.which(program) is None:
            needs.append(Need(program, package))
    if command == "test" and not _has_postgresql():
        needs.append(Need("PostgreSQL", "postgresql"))
    if not _KEYRING.exists():
        needs.append(Need(str(_KEYRING), "debian-archive-keyring"))
    return needs


def _has_postgresql() -> bool:
    # Debian's server programs are not in the path; the tests start one of their own.
    return bool(shutil.which("initdb")) or any(_POSTGRESQL.glob("*/bin/initdb"))


def _names_a_qemu(arguments: Sequence[str]) -> bool:
    given = any(word == "--qemu" or word.startswith("--qemu=") for word in arguments)
    return given or bool(os.environ.get("POSTLOAD_QEMU"))


def _missing_for_venv() -> list[Need]:
    # Debian's python3 has the module venv but not ensurepip, without which there is no pip in a venv.
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return []
    version = "{}.{}".format(*sys.version_info)
    return [Need(f"the modules venv and ensurepip of {sys.executable}", f"python{version}-venv")]


def install_packages(needs: Sequence[Need]) -> None:
    """Install Debian packages; nothing is run when there is nothing to install.

    :raises MissingError: no apt-get, no right to use it, or a package cannot be had
    """
    if not needs:
        return
    install = [*_APT, *(need.package for need in needs)]
    if shutil.which("apt-get") is None:
        what = "; ".join(f"{need.what} (Debian's package {need.package})" for need in needs)
        raise MissingError(f"there is no apt-get here, so install by hand: {what}; then run the same line again")
    prefix = _as_root(install)
    _say("apt-get update")
    _, updated = _capture([*prefix, "apt-get", "update", "-q"], UPDATE_TIMEOUT_S)
    _say("apt-get installs " + " ".join(need.package for need in needs))
    lock = ["-o", f"DPkg::Lock::Timeout={DPKG_LOCK_TIMEOUT_S}"]
    # The update may fail for a list that is not needed: only what the installation says counts.
    status, output = _capture([*prefix, *install, "-q", *lock], INSTALL_TIMEOUT_S)
    importlib.invalidate_caches()
    if status:
        raise MissingError(_apt_message(needs, install, updated + output))


def _as_root(install: Sequence[str]) -> list[str]:
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        return ["sudo", "--preserve-env=DEBIAN_FRONTEND,LC_ALL,http_proxy,https_proxy,no_proxy"]
    what = f"apt-get update && {shlex.join(install)}"
    raise MissingError(f"packages are missing and there is no sudo; as root type: {what}")


def _apt_message(needs: Sequence[Need], install: Sequence[str], output: str) -> str:
    """One line for what apt-get printed."""
    packages = ", ".join(need.package for need in needs)
    unfetched = _UNFETCHED.search(output)
    if unfetched:
        host, reason = unfetched.groups()
        # apt 3 keeps the cause for this place
        first = _FIRST_REASON.search(output)
        reason = first[1] if first else reason
        text = f"{packages} could not be had: {host} cannot be reached ({reason.strip()}). "
        return text + "Connect to the network and run the same line again: it goes on from here"
    lines = [line for line in output.splitlines() if line.startswith(("E: ", "sudo: "))] or output.splitlines()
    why = "; ".join(lines[-2:]) or "apt-get said nothing"
    return f"{packages} could not be installed: {why}. As root type: apt-get update && {shlex.join(install)}"


# --- The virtual environment -----------------------------------------------------------------------------


def prepare_venv(parts: Sequence[str]) -> None:
    """Make ``.venv`` and pip install the parts that it lacks or that are out of date.

    :param parts: ``project`` and ``tox``
    :raises HostError: pip or the making of the venv failed
    """
    if _venv_works() and all(_is_current(part) for part in parts):
        return
    with _locked():
        if not _venv_works() and not _adopt_venv():
            _make_venv()
        for part in parts:
            if not _is_current(part):
                _pip_install(part)


_PROGRAMS: Mapping[str, str] = {"project": "postload", "tox": "tox"}


def _pip_words(part: str) -> list[str]:
    return ["-e", str(ROOT)] if part == "project" else ["tox>=4"]


def _wanted(part: str) -> str:
    """What the state file says of a part that is up to date."""
    if part == "venv":
        # A venv knows its own path, so it does not outlive a move; nor a change of the Python under it.
        return "{}.{} {}".format(*sys.version_info[:2], VENV)
    if part == "project":
        return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return " ".join(_pip_words(part))


def _state() -> Mapping[str, str]:
    try:
        state = json.loads(STATE.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _remember(part: str) -> None:
    text = json.dumps({**_state(), part: _wanted(part)}, indent=1)
    new = STATE.with_suffix(".new")
    new.write_text(text + "\n", "utf-8")
    new.replace(STATE)


def _venv_works() -> bool:
    # access() follows the link to the Python that made it, which may be gone.
    return _state().get("venv") == _wanted("venv") and os.access(VENV / "bin" / "python", os.X_OK)


def _is_current(part: str) -> bool:
    return _state().get(part) == _wanted(part) and os.access(VENV / "bin" / _PROGRAMS[part], os.X_OK)


def _adopt_venv() -> bool:
    """Take over a venv that somebody else made here, rather than empty it."""
    python = VENV / "bin" / "python"
    if _state() or not os.access(python, os.X_OK):
        return False
    code = "import sys, pip; print(sys.version_info[:2], sys.prefix)"
    status, output = _capture([str(python), "-c", code], ADOPT_TIMEOUT_S)
    if status or output.strip() != f"{sys.version_info[:2]} {VENV}":
        return False
    _remember("venv")
    return True


def _make_venv() -> None:
    missing = _missing_for_venv()
    if missing:
        raise MissingError(f"{missing[0].what} are missing even with {missing[0].package}: use another Python")
    _say(f"making {VENV.name}")
    # This may run by the very Python of the venv that is about to be emptied.
    python = getattr(sys, "_base_executable", sys.executable)
    status, output = _capture([*_with_us(), python, "-m", "venv", "--clear", str(VENV)], INSTALL_TIMEOUT_S)
    if status:
        last = (output.strip().splitlines() or ["venv said nothing"])[-1]
        raise HostError(f"{VENV} could not be made: {last}")
    _remember("venv")


def _pip_install(part: str) -> None:
    name = "the project" if part == "project" else part
    _say(f"pip installs {name} into {VENV.name}")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    status, output = _capture([*_with_us(), *pip, "--retries", "2", *_pip_words(part)], INSTALL_TIMEOUT_S)
    if status:
        LOG.write_text(output, "utf-8")
        raise HostError(_pip_message(name, output))
    _remember(part)


def _pip_message(name: str, output: str) -> str:
    """One line for what pip printed."""
    if _UNREACHED.search(output):
        text = f"pip could not install {name}: PyPI cannot be reached. Connect to the network (or set PIP_INDEX_URL"
        return f"{text} to a mirror) and run the same line again: it goes on from here; all of it is in {LOG}"
    errors = [line.strip() for line in output.splitlines() if line.strip().startswith("ERROR:")]
    why = errors[0] if errors else "it gave no reason"
    return f"pip could not install {name}: {why}; all of it is in {LOG}"


# --- Child processes and the lock ------------------------------------------------------------------------


def _with_us() -> list[str]:
    """Ends a child with this process. Not for apt-get: a dpkg that is killed leaves packages half set up."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


def _capture(argv: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Run a program without input; returns its exit status and all that it printed.

    :raises DeadlineError: it did not end in time and was told to
    """
    # LC_ALL: its messages are read. sudo asks for its password on the terminal, not here.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        output, _ = child.communicate(timeout=timeout_s)
    except BaseException as error:
        _end(child)
        if isinstance(error, subprocess.TimeoutExpired):
            text = f"{shlex.join(argv)} did not end within {timeout_s:.0f} s"
            raise DeadlineError(text) from error
        raise
    return child.returncode, output.decode("utf-8", "replace")


def _end(child: subprocess.Popen[bytes]) -> None:
    for stop in (child.terminate, child.kill):
        # sudo belongs to root and takes no signal from us; Ctrl-C reaches it through the terminal.
        with contextlib.suppress(PermissionError):
            stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=20)
            return


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One set-up at a time in this checkout; the lock is on the folder, and goes with its process."""
    handle = os.open(ROOT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _wait_for_lock(handle)
        yield
    finally:
        os.close(handle)


def _wait_for_lock(handle: int) -> None:
    deadline_s: float | None = None
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if deadline_s is None:
            _say("waiting for another set-up in this folder")
            deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        if time.monotonic() > deadline_s:
            raise DeadlineError(f"another set-up in {ROOT} did not end within {LOCK_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
