# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of a stack, whoever printed them: gdb, a sanitizer or valgrind. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

#: Code that every stack goes through and that says nothing of a device: the C library, glib, the tools themselves.
_RUNTIME_FUNCTION = re.compile(
    r"__interceptor_|___interceptor_|__asan_|__tsan_|__ubsan_|__sanitizer_|__msan_|__libc_|__GI_|__assert|___assert|"
    r"__restore_rt|_start$|__fortify|__stack_chk|__chk_fail|__pthread|pthread_|start_thread|clone3?$|__clone|"
    r"(raise|abort|kill|malloc|calloc|realloc|free|memcpy|memmove|memset|memcmp|strlen|strcmp|strdup|posix_memalign|"
    r"aligned_alloc|operator new|operator delete)\b|"
    r"__mem|_int_|unlink_chunk|malloc_|sysmalloc|munmap_chunk|tcache_|g_[a-z0-9_]+$"
)
_RUNTIME_FILE = re.compile(
    r"libsanitizer|compiler-rt|/sysdeps/|/csu/|/nptl/|/glib/|(^|/)malloc/|(^|/)(raise|abort|assert)\.c$"
)
_LIBRARY = re.compile(r"\.so(\.[0-9.]+)?$")
_QEMU_MODULE = re.compile(r"/qemu/[^/]+\.so$")
#: Directories of QEMU's source tree: what stands before them in a file name is where it was built.
# fmt: off
_TOP = frozenset(
    [
        "accel", "authz", "backends", "block", "chardev", "crypto", "disas", "dump", "ebpf", "gdbstub", "hw",
        "include", "io", "linux-user", "migration", "monitor", "nbd", "net", "plugins", "qapi", "qga", "qom",
        "replay", "scsi", "semihosting", "slirp", "softmmu", "stats", "system", "target", "tcg", "trace", "ui",
        "util", "audio", "fsdev",
    ]
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame.

    :param number: 0 is the innermost
    :param function: its name; empty where nobody could tell
    :param file: source file as it was printed; empty where unknown
    :param line: 1-based, or 0
    :param module: program or library; empty where unknown
    :param address: as printed
    :param offset: of the address in its module, in hexadecimal; empty where unknown
    """

    number: int
    function: str
    file: str = ""
    line: int = 0
    module: str = ""
    address: str = ""
    offset: str = ""

    @property
    def in_qemu(self) -> bool:
        """Whether it is code of QEMU's own, as far as can be told."""
        if self.function and _RUNTIME_FUNCTION.match(self.function):
            return False
        if self.file and _RUNTIME_FILE.search(self.file):
            return False
        return not (_LIBRARY.search(self.module) and not _QEMU_MODULE.search(self.module))

    @property
    def source(self) -> str:
        """``hw/isa/lpc_ich9.c:123``: from QEMU's own tree on, without where it was built."""
        name = source_file(self.file)
        return f"{name}:{self.line}" if name and self.line else name

    @property
    def text(self) -> str:
        """One line for a report."""
        where = self.source or self.module.rpartition("/")[2] + (f"+{self.offset}" if self.offset else "")
        return f"#{self.number} {self.function or '??'}{f' ({where})' if where else ''}"

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "function": self.function,
            "file": source_file(self.file),
            "line": self.line,
            "module": self.module.rpartition("/")[2],
            **({"offset": self.offset} if self.offset else {}),
        }


def source_file(path: str) -> str:
    """A file name without the folder it was built in: ``../../hw/net/e1000.c`` is ``hw/net/e1000.c``."""
    parts = path.split("/")
    at = next((i for i in range(len(parts) - 2, -1, -1) if parts[i] in _TOP), None)
    if at is None:
        return parts[-1]
    # hw/net and migration/block: one folder of QEMU's tree may be called as another at its top
    while at and parts[at - 1] in _TOP:
        at -= 1
    return "/".join(parts[at:])


def first_in_qemu(frames: Iterable[Frame]) -> Frame | None:
    """The innermost frame of QEMU's own code that has a name."""
    return next((frame for frame in frames if frame.function and frame.in_qemu), None)


#: The functions that hand a load to a device, and those that every load comes from.
_DISPATCHERS = (
    "vmstate_load_state",
    "vmstate_load_vmsd",
    "vmstate_load",
    "qemu_loadvm_state_main",
    "qemu_loadvm_state",
)
#: Below this many names a stack tells nothing more.
_SHORT_FRAMES = 8


def short_form(frames: Sequence[Frame], first: str = "") -> str:
    """The names from QEMU's innermost frame to the one that dispatched the load: ``a < b < vmstate_load_state``.

    Frames without a name stand as ``?``, several as one.

    :param first: the function that the log names; put in front when the stack has it without a name
    """
    own = list(frames)
    while own and not (own[0].in_qemu and (own[0].function or _inside(own[0]))):
        own.pop(0)
    if first and all(_plain(frame.function) != first for frame in own):
        unnamed = own[:1] if own and not own[0].function else []
        own = [Frame(number=0, function=first), *own[len(unnamed) :]]
    names: list[str] = []
    for frame in own:
        if frame.function and not frame.in_qemu:
            break
        name = _plain(frame.function) or "?"
        if name != "?" or names[-1:] != ["?"]:
            names.append(name)
        if name in _DISPATCHERS or len(names) >= _SHORT_FRAMES:
            break
    return " < ".join(names) if names != ["?"] else ""


def to_dispatcher(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """The frames up to the one that dispatched the load; all where none did."""
    at = next((at for at, frame in enumerate(frames) if _plain(frame.function) in _DISPATCHERS), len(frames))
    return tuple(frames[: at + 1])


def _inside(frame: Frame) -> bool:
    """A frame without a name counts unless its module says that it is a library's."""
    return not _LIBRARY.search(frame.module) or bool(_QEMU_MODULE.search(frame.module))


def _plain(function: str) -> str:
    """Without what compilers put behind a name: ``.constprop.0``, ``.part.1``, ``.cold``, ``[cold]``."""
    return re.sub(r"(\.(constprop|part|isra|cold|lto_priv)(\.\d+)?|\[cold\])+$|\.llvm\.\d+$", "", function)


def plain_function(function: str) -> str:
    """A function's name alone: no arguments, no return type, no compiler's suffix."""
    name = re.sub(r"\(.*", "", function).strip()
    return _plain(name.rpartition(" ")[2].lstrip("*"))
