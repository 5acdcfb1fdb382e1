# SPDX-License-Identifier: GPL-2.0-or-later
"""A distribution's kernel: its bootable image, and its modules in load order, without root and without
kmod."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from harness.errors import HostError, PostloadError, UsageError
from harness.tools.program import run_tool

ELF_MAGIC = b"\x7fELF"
UNPACK_TIMEOUT_S = 120.0

# Linux, Documentation/x86/boot.rst, "The Real-Mode Kernel Header".
_SETUP_SECTS = 0x1F1  # u8: sectors of 512 bytes before the protected-mode code, less the boot sector
_HEADER_MAGIC = 0x202  # "HdrS"
_PROTOCOL = 0x206  # u16: 0x0208 is the first with a payload
_PAYLOAD = struct.Struct("<II")  # at 0x248: payload_offset from the protected-mode code, payload_length
_PAYLOAD_AT = 0x248

_XEN_ELFNOTE_PHYS32_ENTRY = 18

# Linux, include/linux/module_signature.h: what stands behind a signed module, the magic last.
_SIGNED_MAGIC = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">5B3xI")  # algo, hash, id_type, signer_len, key_id_len, sig_len


class KernelForm(StrEnum):
    """How a kernel image came to be: of a bzImage that QEMU cannot start by PVH, why not."""

    ELF = "elf"
    UNPACKED = "elf-of-bzimage"
    PACKAGED = "as-packaged"
    NO_PAYLOAD = "bzimage-without-payload"  # as far as its boot header says
    PACKED = "bzimage-not-unpacked"
    NO_PVH = "bzimage-without-pvh-entry"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelImage:
    """What QEMU gets as ``-kernel``.

    :param data: the file
    :param pvh: true for an ELF that QEMU starts by PVH, false for the bzImage as the distribution ships it
    :param form: how it came to be
    :param said: the payload's compression, or why it could not be unpacked
    """

    data: bytes
    pvh: bool
    form: KernelForm
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module file. ``name`` is the one in ``/proc/modules``: with underscores."""

    name: str
    path: Path
    depends: tuple[str, ...] = ()
    soft_before: tuple[str, ...] = ()
    aliases: tuple[str, ...] = field(default=(), repr=False)


def boot_image(bzimage: bytes) -> KernelImage:
    """The quickest bootable form of a bzImage: its unpacked payload when QEMU can start that by PVH.

    Unpacking in the host takes a moment; the same under TCG takes seconds (see guests/debian-amd64.yaml).

    :raises UsageError: the bytes are neither a bzImage nor an ELF kernel
    """
    if bzimage[:4] == ELF_MAGIC:
        if not has_pvh_note(bzimage):
            raise UsageError("the kernel is an ELF file without a PVH entry (XEN_ELFNOTE_PHYS32_ENTRY)")
        return KernelImage(data=bzimage, pvh=True, form=KernelForm.ELF)
    payload = _payload(bzimage)
    if payload is None:
        return KernelImage(data=bzimage, pvh=False, form=KernelForm.NO_PAYLOAD)
    try:
        vmlinux, how = unpack(payload)
    except (PostloadError, lzma.LZMAError, OSError, EOFError, zlib.error) as error:
        return KernelImage(data=bzimage, pvh=False, form=KernelForm.PACKED, said=str(error))
    if not has_pvh_note(vmlinux):
        return KernelImage(data=bzimage, pvh=False, form=KernelForm.NO_PVH)
    return KernelImage(data=vmlinux, pvh=True, form=KernelForm.UNPACKED, said=how)


def _payload(bzimage: bytes) -> bytes | None:
    """The compressed kernel inside a bzImage, without the u32 size that the build appends; None when there
    is none."""
    if bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise UsageError("the kernel is neither a bzImage (no HdrS boot header) nor an ELF file")
    (protocol,) = struct.unpack_from("<H", bzimage, _PROTOCOL)
    if protocol < 0x0208:
        return None
    offset, length = _PAYLOAD.unpack_from(bzimage, _PAYLOAD_AT)
    start = ((bzimage[_SETUP_SECTS] or 4) + 1) * 512 + offset
    payload = bzimage[start : start + length]
    return payload if length and len(payload) == length else None


def unpack(payload: bytes) -> tuple[bytes, str]:
    """Unpack a kernel payload or a compressed module, known by its first bytes; what follows its end is left
    alone.

    :returns: the bytes, and the name of the compression
    :raises MissingError: zstd or lz4 is needed and not installed
    :raises HostError: the compression is not known
    """
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload), "xz"
    if payload[:2] == b"\x1f\x8b":
        return zlib.decompressobj(wbits=31).decompress(payload), "gzip"
    if payload[:4] == ELF_MAGIC:
        return payload, "none"
    for magic, program in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")):
        if payload[:4] == magic:
            return _unpack_by_program(program, payload), program
    raise HostError(f"the compression that starts with {payload[:4].hex()} is not known")


def _unpack_by_program(program: str, payload: bytes) -> bytes:
    if shutil.which(program) is None:
        return run_tool([program], timeout_s=1, needed=f"Install the package {program}.")
    # The kernel's build appends the unpacked size (u32) to the payload, which neither program takes.
    for data in (payload[:-4], payload):
        try:
            return run_tool([program, "-d", "-c"], stdin=data, timeout_s=UNPACK_TIMEOUT_S)
        except HostError as error:
            last = error
    raise last


def has_pvh_note(elf: bytes) -> bool:
    """Whether an ELF kernel has the note that QEMU boots by.

    QEMU: hw/i386/x86.c ``load_elfboot`` and include/hw/elf_ops.h: note 18 of owner ``Xen``, in a PT_NOTE
    segment.
    """
    try:
        segments = [each for each in ELFFile(io.BytesIO(elf)).iter_segments() if isinstance(each, NoteSegment)]
        notes = [note for segment in segments for note in segment.iter_notes()]
    except (ELFError, ConstructError):
        return False
    return any(note.n_name == "Xen" and note.n_type == _XEN_ELFNOTE_PHYS32_ENTRY for note in notes)


def module_name(text: str) -> str:
    """A module's name from its file name or from a list: ``sd-mod.ko.xz`` -> ``sd_mod``."""
    return Path(text).name.partition(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """A module's bytes, decompressed.

    :raises HostError: it cannot be read or unpacked
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            return gzip.decompress(data)
        return data if path.suffix == ".ko" else unpack(data)[0]
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise HostError(f"module {path} cannot be read: {error}") from error


def unsigned(module: bytes) -> bytes:
    """A module without the signature that stands behind it; one that has none, or a broken one, is left as it is.

    A signature that is there is checked, by whatever ciphers the guest has by then, and one that does not pass refuses
    the module (``module_sig_check``): a device under test that offers RSA (virtio-crypto) would decide which other
    drivers can be loaded. A module without any is taken, as long as the kernel does not insist on one.
    """
    body = module.removesuffix(_SIGNED_MAGIC)
    if body == module or len(body) < _SIGNATURE.size:
        return module
    *_, signer, key, signature = _SIGNATURE.unpack(body[-_SIGNATURE.size :])
    end = len(body) - _SIGNATURE.size - signer - key - signature
    return body[:end] if end > 0 else module


def parse_modinfo(path: Path, data: bytes) -> Module:
    """What ``.modinfo`` says: NUL-separated ``key=value`` (Linux, include/linux/moduleparam.h,
    ``__MODULE_INFO``).

    :raises HostError: the file is no ELF module
    """
    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    except (ELFError, ConstructError) as error:
        raise HostError(f"module {path} is no whole ELF file: {error}") from error
    if section is None:
        raise HostError(f"module {path} has no .modinfo section")
    depends: list[str] = []
    soft: list[str] = []
    aliases: list[str] = []
    for item in section.data().split(b"\0"):
        key, _, value = item.decode("utf-8", "replace").partition("=")
        if key == "depends":
            depends += [module_name(word) for word in value.split(",") if word]
        elif key == "softdep":
            soft += _soft_before(value)
        elif key == "alias":
            aliases.append(value)
    return Module(
        name=module_name(path.name),
        path=path,
        depends=tuple(depends),
        soft_before=tuple(soft),
        aliases=tuple(aliases),
    )


def _soft_before(value: str) -> list[str]:
    """The words after ``pre:`` of a soft dependency such as ``pre: crc32c post: foo``."""
    kind = ""
    found = []
    for word in value.split():
        if word.endswith(":"):
            kind = word
        elif kind == "pre:":
            found.append(word)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTree:
    """All modules under one folder, found by name; each is read only when it is asked for.

    :param files: name -> file
    :param builtin: names that are in the kernel itself
    """

    root: Path
    files: Mapping[str, Path]
    builtin: frozenset[str]
    _read: dict[str, Module] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, root: Path) -> ModuleTree:
        """A tree such as ``lib/modules/6.1.0-56-amd64``.

        :raises HostError: there is no module in it
        """
        files = {module_name(path.name): path for path in sorted(root.rglob("*.ko*")) if path.is_file()}
        if not files:
            raise HostError(f"no kernel modules in {root}")
        listed = root / "modules.builtin"
        builtin = listed.read_text().splitlines() if listed.is_file() else []
        return cls(root=root, files=files, builtin=frozenset(module_name(line) for line in builtin))

    def load_order(self, driver: str) -> list[Module]:
        """The modules to load for a driver, dependencies first, the driver last; empty when it is built in.

        Soft dependencies come first as modprobe has it, but those of ``kernel/arch`` are left out: they are
        faster twins that refuse to load on a CPU model without the instruction, and the generic one does the
        same work.

        :raises HostError: the driver, or a module it needs, is neither a file nor built in
        """
        order: dict[str, Module] = {}
        self._visit(module_name(driver), order, (), driver)
        return list(order.values())

    def _visit(self, name: str, order: dict[str, Module], above: tuple[str, ...], driver: str) -> None:
        if name in order or name in above or name in self.builtin:
            return
        module = self.module(name)
        if module is None:
            via = f" (needed by {above[-1]})" if above else ""
            raise HostError(f"this kernel has no module {name}{via} for the driver {driver}: {self.root}")
        for soft in module.soft_before:
            for provider in self._providers(soft):
                self._visit(provider, order, (*above, name), driver)
        for needed in module.depends:
            self._visit(needed, order, (*above, name), driver)
        order[name] = module

    def module(self, name: str) -> Module | None:
        """One module by name, or None."""
        if name not in self._read:
            path = self.files.get(name)
            if path is None:
                return None
            self._read[name] = parse_modinfo(path, read_module(path))
        return self._read[name]

    def _providers(self, soft: str) -> Iterable[str]:
        """Modules that a soft dependency may mean: one of that name, else a generic one with that alias."""
        name = module_name(soft)
        if name in self.builtin:
            return ()
        if name in self.files:
            return (name,)
        return [other for other in self._crypto_like(name) if self._is_alias(other, soft)]

    def _crypto_like(self, name: str) -> list[str]:
        """Modules whose name starts like the alias: reading all 4,000 files to find one alias would take a
        minute."""
        found = sorted(other for other in self.files if other.startswith(name))
        return [other for other in found if "/kernel/arch/" not in self.files[other].as_posix()]

    def _is_alias(self, name: str, alias: str) -> bool:
        module = self.module(name)
        return module is not None and alias in module.aliases
