# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages as files: a private apt root, without root rights, that leaves the host's packages alone.

apt keeps all it knows in folders that can be named: state, package lists, caches, sources and the list of
what is installed. Here each of them is in the cache, and nothing counts as installed. The host's own
``apt.conf`` is still read, so that its proxies hold; only its hooks are dropped, since they clean the
*host's* caches.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.cache import cache_root, disk_errors
from harness.errors import DeadlineError, HostError, MissingError
from harness.files import sweep, temp_dir, write_atomically
from harness.tools.program import run_tool

MIRROR_VARIABLE = "POSTLOAD_MIRROR"
SECURITY_VARIABLE = "POSTLOAD_SECURITY_MIRROR"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: Keys of releases that only the archive has; not every host has the file.
OLD_KEYRING = Path("/usr/share/keyrings/debian-archive-removed-keys.gpg")

UPDATE_TIMEOUT_S = 300.0
DOWNLOAD_TIMEOUT_S = 900.0
QUERY_TIMEOUT_S = 60.0
LISTS_FRESH_S = 24 * 3600.0

_NEEDED = (
    "apt-get and dpkg-deb fetch and unpack Debian packages: they are on every Debian and Ubuntu "
    "(packages apt, dpkg and debian-archive-keyring). "
)
_GUEST_OTHERWISE = (
    "On another system name a kernel and a busybox in the guest's YAML instead: "
    "'kernel: {vmlinuz: PATH, modules: PATH}' and 'busybox: {path: PATH}'."
)
#: Downloads are cut into pieces of this size: what one fetched is kept when the next fails.
_PIECE_BYTES = 8 << 20
_FAILED = re.compile(r"^Err:.*\n((?:[ \t]+\S.*\n?)+)", re.MULTILINE)
_NO_SECURITY = frozenset({"sid", "unstable", "testing", "experimental"})

_APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Architectures;
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Log "{root}/log";
Dir::Etc::sourcelist "{root}/etc/sources.list";
Dir::Etc::sourceparts "{root}/etc/empty";
Dir::Etc::preferences "{root}/etc/preferences";
Dir::Etc::preferencesparts "{root}/etc/empty";
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deb:
    """One downloaded package; ``sha256`` was checked against the signed package list."""

    path: Path
    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package as the signed list has it; ``installed_bytes`` is what its files take, as the list says."""

    name: str
    version: str
    sha256: str
    size_bytes: int
    installed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Where packages come from; ``security`` is None when there is no such archive.

    :param ended: a release that changes no more: its signed index may be older than it promises
    """

    main: str
    security: str | None
    ended: bool = False

    @classmethod
    def from_environment(cls) -> Mirror:
        """``$POSTLOAD_MIRROR`` and, beside it, the folder ``debian-security`` (or
        ``$POSTLOAD_SECURITY_MIRROR``)."""
        main = os.environ.get(MIRROR_VARIABLE, "").rstrip("/") or DEFAULT_MIRROR
        security = os.environ.get(SECURITY_VARIABLE)
        if security is None:
            security = f"{main}-security"
        return cls(main=main, security=security.rstrip("/") or None)


class AptRoot:
    """One suite of Debian, asked and downloaded from.

    :param suite: ``bookworm``, ``trixie-backports``, ``sid``, ...; a backports suite brings its base suite
    along
    :param arch: Debian's name of the architecture
    :param mirror: by default the one that the environment names
    :param otherwise: what a user without apt can do instead
    """

    def __init__(
        self,
        suite: str,
        arch: str = "amd64",
        mirror: Mirror | None = None,
        otherwise: str = _GUEST_OTHERWISE,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", suite) or not re.fullmatch(r"[a-z0-9-]+", arch):
            raise HostError(f"not a Debian suite and architecture: {suite!r}, {arch!r}")
        self.suite = suite
        self.arch = arch
        self.mirror = mirror or Mirror.from_environment()
        self._needed = _NEEDED + otherwise
        # Lists of one mirror say nothing about another.
        mark = hashlib.sha256(f"{self.mirror.main} {self.mirror.security}".encode()).hexdigest()[:8]
        self.root = cache_root() / "apt" / f"{suite}-{arch}-{mark}"

    def candidate(self, name: str) -> str:
        """The version of a package that would be installed.

        :raises HostError: there is no such package, or the lists cannot be had
        """
        return self._field(name, "Version")

    def depends(self, name: str) -> list[str]:
        """The names that a package depends on, in its order; the first of each group of alternatives.

        :raises HostError: there is no such package, or the lists cannot be had
        """
        record = self._record(name)
        groups = ", ".join(filter(None, (record.get("Pre-Depends"), record.get("Depends")))).split(",")
        first = [group.split("|")[0].split("(")[0].strip().partition(":")[0] for group in groups]
        return list(dict.fromkeys(name for name in first if name))

    def plan(self, names: Sequence[str]) -> list[Package]:
        """``names`` and all that they need, as if nothing were installed and without what is only recommended, with
        versions, hashes and sizes.

        :raises HostError: they cannot be installed together, or the lists cannot be had
        """
        versions = self._versions(names)
        wanted = [f"{name}={version}" for name, version in versions.items()]
        out = self._apt("apt-cache", "show", *wanted, timeout_s=QUERY_TIMEOUT_S)
        found = {(record["Package"], record["Version"]): record for record in map(_fields, _records(out))}
        missing = [name for name, version in versions.items() if (name, version) not in found]
        if missing:
            raise HostError(f"package {missing[0]} of {self._where} is needed, and not in its list")
        return [_package(found[item]) for item in versions.items()]

    def fetch(self, packages: Sequence[Package], into: Path, progress: Callable[[int], None] | None = None) -> None:
        """Fetch packages into a folder as ``SHA256.deb``; those that are there already are not fetched again.

        What was fetched before an error, or before this process dies, stays and is not fetched again.

        :param progress: called with the bytes of each piece that has come
        :raises HostError: a package cannot be had, or the disk is full
        :raises MissingError: this host has no apt
        """
        with disk_errors(into):
            into.mkdir(parents=True, exist_ok=True)
            sweep(into)
            for piece in _pieces([package for package in packages if not (into / f"{package.sha256}.deb").is_file()]):
                self._fetch_piece(piece, into)
                if progress is not None:
                    progress(sum(package.size_bytes for package in piece))

    def download(self, names: Sequence[str], into: Path) -> list[Deb]:
        """Fetch packages into a folder; those that are there already are not fetched again.

        :raises HostError: a package cannot be had; the message names it and the mirror
        :raises MissingError: this host has no apt
        """
        with disk_errors(into):
            into.mkdir(parents=True, exist_ok=True)
            return [self._download(name, into) for name in names]

    def update(self, *, force: bool = False) -> None:
        """Fetch the package lists when there are none, when they are a day old, or when forced.

        Old lists are kept and used when the mirror cannot be reached, unless ``force`` asked for new ones.

        :raises HostError: no lists, and the mirror cannot be reached
        """
        with self._locked():
            stamp = self.root / "updated"
            age_s = time.time() - stamp.stat().st_mtime if stamp.exists() else None
            if age_s is not None and age_s < LISTS_FRESH_S and not force:
                return
            try:
                self._apt("apt-get", "update", timeout_s=UPDATE_TIMEOUT_S)
            except MissingError:
                raise
            except (HostError, DeadlineError) as error:
                if age_s is not None and not force:
                    return
                raise HostError(f"the package lists of {self._where} cannot be had: {error}") from error
            stamp.touch()
            self.__dict__.pop("_records", None)

    @property
    def _where(self) -> str:
        return f"{self.suite} from {self.mirror.main}"

    def _download(self, name: str, into: Path) -> Deb:
        record = self._record(name)
        version, sha256 = record["Version"], record["SHA256"]
        path = into / Path(record["Filename"]).name
        if not (path.is_file() and _sha256(path) == sha256):
            self._fetch(name, version, sha256, path)
        return Deb(path=path, name=name, version=version, sha256=sha256)

    def _fetch(self, name: str, version: str, sha256: str, path: Path) -> None:
        sweep(path.parent)
        with temp_dir(path.parent) as temp:
            try:
                self._apt("apt-get", "download", f"{name}={version}", timeout_s=DOWNLOAD_TIMEOUT_S, cwd=temp)
            except MissingError:
                raise
            except (HostError, DeadlineError) as error:
                text = f"package {name} {version} of {self._where} could not be downloaded: {error}"
                raise HostError(text) from error
            found = sorted(temp.glob("*.deb"))
            if len(found) != 1 or _sha256(found[0]) != sha256:
                text = f"package {name} {version} of {self._where} is not what its list says (SHA-256)"
                raise HostError(text)
            found[0].replace(path)

    def _fetch_piece(self, piece: Sequence[Package], into: Path) -> None:
        wanted = [f"{package.name}={package.version}" for package in piece]
        with temp_dir(into) as temp:
            try:
                self._apt("apt-get", "download", *wanted, timeout_s=DOWNLOAD_TIMEOUT_S, cwd=temp)
            except MissingError:
                raise
            except (HostError, DeadlineError) as error:
                if _is_full(error):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                text = f"packages of {self._where} could not be downloaded: {error}"
                raise HostError(text) from error
            found = {_sha256(path): path for path in temp.glob("*.deb")}
            for package in piece:
                if package.sha256 not in found:
                    text = f"package {package.name} {package.version} of {self._where} is not what its list says"
                    raise HostError(f"{text} (SHA-256)")
            for package in piece:
                found[package.sha256].replace(into / f"{package.sha256}.deb")

    def _versions(self, names: Sequence[str]) -> dict[str, str]:
        """Names and versions of all that would be installed, in apt's order."""
        self.update()
        out = self._apt("apt-get", "--simulate", "install", *names, timeout_s=QUERY_TIMEOUT_S)
        lines = [line.split() for line in out.splitlines() if line.startswith("Inst ")]
        return {words[1].partition(":")[0]: words[2].lstrip("(") for words in lines}

    def _field(self, name: str, key: str) -> str:
        value = self._record(name).get(key)
        if value is None:
            raise HostError(f"package {name} of {self._where} has no field {key}")
        return value

    @cached_property
    def _records(self) -> dict[str, dict[str, str]]:
        return {}

    def _record(self, name: str) -> dict[str, str]:
        """The candidate's fields in the package list."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
            raise HostError(f"not a package name: {name!r}")
        try:
            self.update()
        except MissingError:
            raise
        except HostError as error:
            raise HostError(f"package {name} is needed, and {error}") from error
        if name not in self._records:
            try:
                out = self._apt("apt-cache", "show", "--no-all-versions", name, timeout_s=QUERY_TIMEOUT_S)
            except MissingError:
                raise
            except HostError as error:
                raise HostError(f"there is no package {name} in {self._where}: {error}") from error
            self._records[name] = _fields(out)
        return self._records[name]

    def _apt(self, program: str, *words: str, timeout_s: float, cwd: Path | None = None) -> str:
        self._prepare()
        argv: list[str | Path] = [program, "-q", "-c", self.root / "etc" / "apt.conf", *words]
        out = run_tool(argv, timeout_s=timeout_s, cwd=cwd, needed=self._needed, reasons=_unfetched)
        return out.decode("utf-8", "replace")

    def _prepare(self) -> None:
        """Lay out the apt root; a second time changes nothing."""
        conf = self.root / "etc" / "apt.conf"
        if conf.exists():
            return
        if not KEYRING.exists():
            why = "it proves that packages are Debian's: install debian-archive-keyring."
            raise MissingError(f"{KEYRING} is missing; {why} {self._needed}")
        with disk_errors(self.root):
            for folder in ("state/lists/partial", "cache/archives/partial", "etc/empty", "log"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            (self.root / "status").touch()
            (self.root / "etc" / "preferences").touch()
        write_atomically(self.root / "etc" / "sources.list", "".join(self._sources()).encode())
        text = _APT_CONF.format(arch=self.arch, root=self.root)
        if self.suite.endswith("-backports"):
            # Debian gives backports a priority that makes them never a candidate by themselves.
            text += f'APT::Default-Release "{self.suite}";\n'
        write_atomically(conf, text.encode())

    def _sources(self) -> Iterator[str]:
        base = self.suite.removesuffix("-backports")
        keys = ",".join(str(path) for path in (KEYRING, OLD_KEYRING) if self.mirror.ended or path == KEYRING)
        ended = " check-valid-until=no" if self.mirror.ended else ""
        head = f"deb [arch={self.arch} signed-by={keys}{ended}]"
        yield f"{head} {self.mirror.main} {base} main\n"
        if base != self.suite:
            yield f"{head} {self.mirror.main} {self.suite} main\n"
        if base not in _NO_SECURITY and self.mirror.security:
            yield f"{head} {self.mirror.security} {base}-security main\n"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One update at a time; the lock goes with its process."""
        deadline_s = time.monotonic() + UPDATE_TIMEOUT_S
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(handle):
                if time.monotonic() > deadline_s:
                    text = f"another process held {self.root}/lock for {UPDATE_TIMEOUT_S:.0f} s"
                    raise DeadlineError(text)
                time.sleep(0.1)
            yield
        finally:
            os.close(handle)


def extract(deb: Path, into: Path) -> None:
    """Unpack a package's files into a folder, without running its scripts.

    :raises HostError: it is damaged, or the disk is full
    :raises MissingError: this host has no dpkg-deb
    """
    try:
        run_tool(["dpkg-deb", "-x", deb, into], timeout_s=QUERY_TIMEOUT_S * 5, needed=_NEEDED + _GUEST_OTHERWISE)
    except HostError as error:
        if _is_full(error):
            free_mib = shutil.disk_usage(into).free >> 20
            raise HostError(f"the disk of {into} is full ({free_mib} MiB free): {error}") from error
        raise


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_full(error: Exception) -> bool:
    """apt's own words for a full disk: write(2)'s error, or its check before a download."""
    return "No space left" in str(error) or "enough free space" in str(error)


def _unfetched(stdout: str) -> list[str]:
    """What apt says of a download that failed: the indented lines below ``Err:``, each once.

    apt 2 repeats them in its errors; apt 3 only the last, which names the host and not what is wrong with it.
    """
    lines = [line.strip() for block in _FAILED.findall(stdout) for line in block.splitlines()]
    return list(dict.fromkeys(lines))


def _records(text: str) -> list[str]:
    return [record for record in re.split(r"\n\s*\n", text) if record.strip()]


def _package(record: dict[str, str]) -> Package:
    return Package(
        name=record["Package"],
        version=record["Version"],
        sha256=record["SHA256"],
        size_bytes=int(record["Size"]),
        installed_bytes=int(record.get("Installed-Size", "0")) << 10,
    )


def _pieces(packages: Sequence[Package]) -> Iterator[list[Package]]:
    piece: list[Package] = []
    for package in packages:
        piece.append(package)
        if sum(each.size_bytes for each in piece) >= _PIECE_BYTES:
            yield piece
            piece = []
    if piece:
        yield piece


def _fields(text: str) -> dict[str, str]:
    """The fields of the first record of a package list (deb822); lines that go on are joined."""
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip():
            if fields:
                break
        elif line[0] in " \t":
            fields[key] += " " + line.strip()
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return fields
