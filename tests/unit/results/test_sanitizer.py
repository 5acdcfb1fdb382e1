# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of sanitizers and valgrind, cut out of public bug reports."""

from __future__ import annotations

from harness.results.sanitizer import first_report, parse_reports

# github.com/oracle/qemu/pull/14
ASAN = """\
==2534591==ERROR: AddressSanitizer: heap-use-after-free on address 0x60600007f600 at pc 0x557ca6aede56 bp 0x7ffd98571600
WRITE of size 8 at 0x60600007f600 thread T0
    #0 0x557ca6aede55 in vfio_connect_proxy /home/ctyun/workspace/code/qemu-5.0/hw/vfio/common.c:1936
    #1 0x557ca6b32d74 in vfio_user_pci_realize /home/ctyun/workspace/code/qemu-5.0/hw/vfio/pci.c:3649
    #2 0x557ca733c425 in pci_qdev_realize hw/pci/pci.c:2098
"""
# put together from two public reports, one of them acrn-hypervisor issue 6147: who freed, who allocated
ASAN_WHOLE = """\
==25627==ERROR: AddressSanitizer: heap-use-after-free on address 0x60600000005c at pc 0x56391011b2f3 bp 0x7fff12588de0
READ of size 4 at 0x60600000005c thread T0
    #0 0x56391011b2f2 in memcpy (/lib/libasan.so.4+0x12f2)
    #1 0x559e3c1e2545 in vm_loop core/main.c:712
    #2 0x7f6f0be34082 in __libc_start_main ../csu/libc-start.c:308

0x60600000005c is located 60 bytes inside of 64-byte region [0x606000000020,0x606000000060)
freed by thread T0 here:
    #0 0x7f6f0c10f40f in __interceptor_free ../../../../src/libsanitizer/asan/asan_malloc_linux.cc:122
    #1 0x559e3c15c7de in pci_emul_deinit hw/pci/core.c:1048

previously allocated by thread T0 here:
    #0 0x559e3bfa7046 in calloc (/usr/bin/acrn-dm+0x2d6046)
    #1 0x559e3c15c7de in virtio_rnd_init hw/pci/virtio/virtio_rnd.c:394
SUMMARY: AddressSanitizer: heap-use-after-free hw/pci/virtio/virtio.c:82 in virtio_poll_timer
Shadow bytes around the buggy address:
"""
# github.com/unicorn-engine/unicorn/issues/646 and github.com/openbmc/qemu/issues/31
UBSAN = """\
src/qemu/translate-all.c:1428:42: runtime error: shift exponent 54 is too large for 32-bit type 'int'
#0 in tb_invalidate_phys_page_fast_x86_64 third_party/unicorn/src/qemu/translate-all.c:1428:42
#1 in notdirty_mem_write third_party/unicorn/src/qemu/exec.c:1386:9
/home/andrew/qemu/slirp/src/ncsi.c:63:10: runtime error: member access within misaligned address 0x7f19f49fc54e
0x7f19f49fc54e: note: pointer points here
"""
# github.com/unicorn-engine/unicorn/issues/1325
TSAN = """\
WARNING: ThreadSanitizer: data race (pid=253877)
  Read of size 1 at 0x7b700000074f by thread T1:
    #0 _timeout_fn /tmp/unicorn/qemu/../uc.c:501:17 (libunicorn.so.1+0x1200b77)

  Previous write of size 1 at 0x7b700000074f by main thread:
    #0 uc_emu_start /tmp/unicorn/qemu/../uc.c:654:24 (libunicorn.so.1+0x11fd584)
    #1 main /tmp/unicorn/tests/unit/emulation_done_race.c:32:9 (emulation_done_race+0x4b662f)
SUMMARY: ThreadSanitizer: data race /tmp/unicorn/qemu/../uc.c:501:17 in _timeout_fn
"""
# github.com/unicorn-engine/unicorn/issues/1680
LSAN = """\
==7079==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 3072 byte(s) in 1 object(s) allocated from:
    #0 0x557cedfbc3e1 in __interceptor_calloc (/home/builder/unicorn/build/test_ppc+0xdb3e1)
    #1 0x7f1c603e0ec4 in g_malloc0 /home/builder/unicorn/repo/glib_compat/gmem.c:139:15
    #2 0x7f1c627465bc in init_ppc_proc /home/builder/unicorn/repo/qemu/target/ppc/translate_init.inc.c:9258:29
"""
# github.com/BinaryAnalysisPlatform/qemu/issues/22
VALGRIND = """\
==14790== Thread 3:
==14790== Invalid read of size 8
==14790==    at 0x26DDC4: qemu_trace_endframe (tracewrap.c:348)
==14790==    by 0x26D874: qemu_trace_newframe (tracewrap.c:253)
==14790==    by 0x59AF119: ???
==14790==  Address 0xf8b21b8 is 56 bytes inside a block of size 80 free'd
==14790==    at 0x483CA3F: free (in /usr/lib/x86_64-linux-gnu/valgrind/vgpreload_memcheck-amd64-linux.so)
==14790==    by 0x26DE7C: qemu_trace_endframe (tracewrap.c:359)
==14790==  Block was alloc'd at
==14790==    at 0x483B7F3: malloc (in /usr/lib/x86_64-linux-gnu/valgrind/vgpreload_memcheck-amd64-linux.so)
==14790==    by 0x48DDE98: g_malloc (in /usr/lib/x86_64-linux-gnu/libglib-2.0.so.0.6400.6)
==14790==    by 0x26DDC4: qemu_trace_newframe (tracewrap.c:250)
"""


def test_address_sanitizer() -> None:
    (report,) = parse_reports("qemu: starting\n" + ASAN)
    assert (report.tool, report.kind, report.access, report.size_bytes) == (
        "AddressSanitizer",
        "heap-use-after-free",
        "write",
        8,
    )
    assert report.function == "vfio_connect_proxy"
    assert report.source == "hw/vfio/common.c"
    assert [frame.line for frame in report.frames] == [1936, 3649, 2098]


def test_who_freed_and_who_allocated() -> None:
    (report,) = parse_reports(ASAN_WHOLE)
    assert report.function == "vm_loop"  # memcpy is a library's
    assert "virtio_rnd_init" in [frame.function for frame in report.allocated]
    assert [frame.function for frame in report.freed] == ["__interceptor_free", "pci_emul_deinit"]
    assert report.text == (
        "AddressSanitizer: heap-use-after-free, read of 4 bytes in vm_loop, freed in pci_emul_deinit, "
        "allocated in virtio_rnd_init"
    )


def test_undefined_behaviour_with_a_stack_and_without() -> None:
    first, second = parse_reports(UBSAN)
    assert first.kind == "shift exponent # is too large for 32-bit type 'int'"
    assert first.function == "tb_invalidate_phys_page_fast_x86_64"
    assert second.frames == ()
    assert second.source == "slirp/src/ncsi.c"
    assert second.kind == "member access within misaligned address #"


def test_a_data_race_has_the_first_stack_only() -> None:
    (report,) = parse_reports(TSAN)
    assert (report.kind, report.access, report.size_bytes) == ("data race", "read", 1)
    assert [frame.function for frame in report.frames] == ["_timeout_fn"]


def test_a_leak_is_named_by_who_allocated() -> None:
    (report,) = parse_reports(LSAN)
    assert (report.tool, report.kind, report.function) == ("LeakSanitizer", "direct leak", "init_ppc_proc")


def test_valgrind() -> None:
    (report,) = parse_reports(VALGRIND)
    assert (report.tool, report.kind, report.access, report.size_bytes) == ("valgrind", "Invalid read", "read", 8)
    assert report.function == "qemu_trace_endframe"
    assert "qemu_trace_newframe" in [frame.function for frame in report.allocated]
    assert [frame.line for frame in report.freed] == [0, 359]


def test_a_log_without_a_report_and_one_that_is_cut() -> None:
    assert first_report("qemu-system-x86_64: ../hw/x.c:1: f: Assertion `a' failed.") is None
    cut = first_report(ASAN.splitlines()[0])
    assert cut is not None
    assert (cut.kind, cut.function) == ("heap-use-after-free", "")


def test_text_about_a_sanitizer_is_no_report() -> None:
    assert parse_reports("qemu-system-x86_64: warning: built with AddressSanitizer, which is slow") == ()
