# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot images and modules, from ELF and bzImage files built by hand."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest
from elf_files import PVH, bzimage, kernel_file, module_file

from harness.errors import HostError, UsageError
from harness.guests.kernel import KernelForm, ModuleTree, boot_image, has_pvh_note, parse_modinfo, read_module, unsigned


@pytest.mark.parametrize("how", [lzma.compress, gzip.compress])
def test_a_payload_with_a_pvh_note_is_unpacked(how) -> None:  # type: ignore[no-untyped-def]
    image = boot_image(bzimage(how(PVH) + struct.pack("<I", len(PVH))))
    assert image.pvh
    assert image.data == PVH


@pytest.mark.parametrize(
    ("bz", "form", "said"),
    [
        (bzimage(lzma.compress(kernel_file(b"Xen\0", 17))), KernelForm.NO_PVH, ""),
        (bzimage(lzma.compress(kernel_file(b"GNU\0", 18))), KernelForm.NO_PVH, ""),
        (bzimage(lzma.compress(PVH), protocol=0x207), KernelForm.NO_PAYLOAD, ""),
        (bzimage(b"\x5d\0\0\0rest"), KernelForm.PACKED, "5d000000 is not known"),
        (bzimage(b"\xfd7zXZ\0broken and broken"), KernelForm.PACKED, ""),
        (bzimage(lzma.compress(PVH))[:-30], KernelForm.NO_PAYLOAD, ""),
    ],
)
def test_else_the_bzimage_is_booted_as_it_is(bz: bytes, form: KernelForm, said: str) -> None:
    image = boot_image(bz)
    assert not image.pvh
    assert image.data == bz
    assert image.form is form
    assert said in image.said


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(UsageError, match="neither a bzImage"):
        boot_image(bytes(4096))
    with pytest.raises(UsageError, match="without a PVH entry"):
        boot_image(kernel_file(b"Xen\0", 1))


def test_every_cut_of_an_elf_is_survived() -> None:
    assert has_pvh_note(PVH)
    for length in range(len(PVH) - 20):
        assert not has_pvh_note(PVH[:length])


def test_modinfo() -> None:
    info = b"license=GPL\0alias=pci:v1\0alias=b-c\0depends=lib-a,lib_b\0softdep=pre: crc-x y post: z\0"
    module = parse_modinfo(Path("a-b.ko.xz"), module_file(info))
    assert module.name == "a_b"
    assert module.depends == ("lib_a", "lib_b")
    assert module.soft_before == ("crc-x", "y")
    assert module.aliases == ("pci:v1", "b-c")
    with pytest.raises(HostError, match=r"no \.modinfo"):
        parse_modinfo(Path("x.ko"), PVH)
    for length in range(len(module_file(info))):
        with pytest.raises(HostError, match=r"x\.ko"):
            parse_modinfo(Path("x.ko"), module_file(info)[:length])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    def put(path: str, info: bytes) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        data = module_file(info)
        file.write_bytes(lzma.compress(data) if path.endswith(".xz") else data)

    put("kernel/drivers/top-disk.ko", b"depends=mid,base\0softdep=pre: crcx\0")
    put("kernel/drivers/mid.ko.xz", b"depends=base,inkernel\0")
    put("kernel/drivers/base.ko", b"depends=\0")
    put("kernel/crypto/crcx_generic.ko", b"depends=\0alias=crcx\0")
    put("kernel/crypto/crcx_other.ko", b"depends=\0alias=other\0")
    put("kernel/arch/x86/crcx-fast.ko", b"depends=\0alias=crcx\0")
    put("kernel/drivers/lost.ko", b"depends=nowhere\0")
    put("kernel/drivers/loop-a.ko", b"depends=loop-b\0")
    put("kernel/drivers/loop-b.ko", b"depends=loop-a\0")
    (tmp_path / "modules.builtin").write_text("kernel/lib/inkernel.ko\n")
    return tmp_path


def names(tree: Path, driver: str) -> list[str]:
    return [module.name for module in ModuleTree.open(tree).load_order(driver)]


def test_load_order(tree: Path) -> None:
    assert names(tree, "top_disk") == ["crcx_generic", "base", "mid", "top_disk"]
    assert names(tree, "top-disk") == names(tree, "top_disk")
    assert names(tree, "inkernel") == []
    assert names(tree, "loop_a") == ["loop_b", "loop_a"]


def test_a_driver_that_is_not_there_is_named(tree: Path) -> None:
    with pytest.raises(HostError, match="no module nope for the driver nope"):
        names(tree, "nope")
    with pytest.raises(HostError, match=r"no module nowhere \(needed by lost\)"):
        names(tree, "lost")
    with pytest.raises(HostError, match="no kernel modules"):
        ModuleTree.open(tree / "kernel" / "none")


def test_modules_are_decompressed(tree: Path) -> None:
    assert read_module(tree / "kernel/drivers/mid.ko.xz") == module_file(b"depends=base,inkernel\0")
    (tree / "bad.ko.xz").write_bytes(b"\xfd7zXZ\0broken and broken")
    with pytest.raises(HostError, match=r"bad\.ko\.xz"):
        read_module(tree / "bad.ko.xz")


SIGNED = b"~Module signature appended~\n"


def test_a_signature_behind_a_module_is_taken_off() -> None:
    body = module_file(b"license=GPL\0")
    # module_signature.h: algo, hash, id_type (PKCS#7), signer_len, key_id_len, 3 of padding, sig_len big-endian
    trailer = bytes([0, 0, 2, 3, 2, 0, 0, 0]) + struct.pack(">I", 300)
    assert unsigned(body + b"ann" + b"id" + bytes(300) + trailer + SIGNED) == body
    assert unsigned(body) == body


@pytest.mark.parametrize("data", [SIGNED, bytes(11) + SIGNED, bytes(20) + struct.pack(">I", 4000) + SIGNED])
def test_what_is_no_whole_signature_is_left_alone(data: bytes) -> None:
    assert unsigned(data) == data
