# SPDX-License-Identifier: GPL-2.0-or-later
"""What gdb prints, read; and where there is no gdb."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report.stacks import stack_text
from harness.results.frames import Frame, short_form, source_file
from harness.triage.backtrace import backtrace_by, hang_frames, parse_frames, parse_threads

#: gdb 13 on Debian's 7.2: QEMU exports names, the C library has debug symbols.
STRIPPED = """\
Thread 6 "COLO incoming" received signal SIGABRT, Aborted.
#0  __pthread_kill_implementation (threadid=..., signo=6, no_tid=0) at ./nptl/pthread_kill.c:44
#1  0x00007f2f18d00472 in __GI_abort () at ./stdlib/abort.c:79
#2  0x00007f2f18cff395 in __assert_fail_base (fmt=..., assertion=...) at ./assert/assert.c:94
#3  0x000055a1b2c3d4e5 in ?? ()
#4  0x000055a1b2c3d4e6 in ?? ()
#5  0x000055a1b2c3d4e7 in vmstate_load_state ()
#6  0x000055a1b2c3d4e8 in ?? ()
#7  0x000055a1b2c3d4e9 in qemu_loadvm_state_main ()
#8  0x00007f2f18d4c134 in start_thread (arg=...) at ./nptl/pthread_create.c:442
"""
#: The same with debug symbols.
DEBUG = """\
#0  0x00007f2f18d00472 in __GI_abort () at ./stdlib/abort.c:79
#1  0x000055a1b2c3d4e5 in memory_region_add_subregion_common (mr=..., offset=...) at ../../softmmu/memory.c:2610
#2  memory_region_add_subregion_overlap (mr=..., subregion=...) at ../../softmmu/memory.c:2635
#3  0x000055a1b2c3d4e6 in ich9_lpc_rcba_update.part.0 (lpc=..., rcba_old=...) at ../../hw/isa/lpc_ich9.c:452
#4  0x000055a1b2c3d4e6 in ich9_lpc_post_load (opaque=..., version_id=...) at ../../hw/isa/lpc_ich9.c:480
#5  0x000055a1b2c3d4e7 in vmstate_load_state (f=..., vmsd=...) at ../../migration/vmstate.c:167
#6  0x000055a1b2c3d4e8 in vmstate_load (f=..., se=...) at ../../migration/savevm.c:1023
"""
THREADS = """\
threads of QEMU while it did not answer:
  7 qemu-system-x86: sleeping in do_poll
Thread 2 (Thread 0x7f (LWP 8) "COLO incoming"):
#0  0x01 in futex_wait () from /lib/x86_64-linux-gnu/libc.so.6
#1  0x02 in vmstate_load_state ()
Thread 1 (Thread 0x7e (LWP 7) "qemu-system-x86"):
#0  0x03 in ppoll () from /lib/x86_64-linux-gnu/libc.so.6
#1  0x04 in main_loop_wait ()
"""


def test_frames_without_symbols() -> None:
    frames = parse_frames(STRIPPED)
    assert [frame.number for frame in frames] == list(range(9))
    assert frames[3] == Frame(number=3, function="", address="0x000055a1b2c3d4e5")
    assert frames[5].function == "vmstate_load_state"
    assert (frames[0].file, frames[0].line) == ("./nptl/pthread_kill.c", 44)


def test_the_function_of_the_log_stands_for_the_frame_that_has_no_name() -> None:
    frames = parse_frames(STRIPPED)
    assert short_form(frames) == "? < vmstate_load_state"
    named = short_form(frames, "memory_region_add_subregion_common")
    assert named == "memory_region_add_subregion_common < ? < vmstate_load_state"


def test_frames_with_debug_symbols() -> None:
    frames = parse_frames(DEBUG)
    assert frames[4].source == "hw/isa/lpc_ich9.c:480"
    assert short_form(frames, "memory_region_add_subregion_common") == (
        "memory_region_add_subregion_common < memory_region_add_subregion_overlap < ich9_lpc_rcba_update < "
        "ich9_lpc_post_load < vmstate_load_state"
    )


def test_a_stack_that_is_all_library_has_no_short_form() -> None:
    frames = parse_frames("#0  0x01 in ppoll () from /lib/libc.so.6\n#1  0x02 in ?? () from /lib/libc.so.6")
    assert len(frames) == 2
    assert short_form(frames) == ""


def test_a_hang_has_the_stack_of_the_thread_that_loads() -> None:
    assert [title for title, _ in parse_threads(THREADS)] == [
        '2 Thread 0x7f (LWP 8) "COLO incoming"',
        '1 Thread 0x7e (LWP 7) "qemu-system-x86"',
    ]
    assert [frame.function for frame in hang_frames(THREADS)] == ["futex_wait", "vmstate_load_state"]
    only_main = THREADS.replace("vmstate_load_state", "cond_wait")
    assert [frame.function for frame in hang_frames(only_main)] == ["ppoll", "main_loop_wait"]


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("../../softmmu/memory.c", "softmmu/memory.c"),
        ("/build/qemu-7.2+dfsg/b/qemu/../../hw/isa/lpc_ich9.c", "hw/isa/lpc_ich9.c"),
        ("system/memory.c", "system/memory.c"),
        ("/elsewhere/thing.c", "thing.c"),
    ],
)
def test_source_files_without_where_they_were_built(path: str, short: str) -> None:
    assert source_file(path) == short


def test_without_gdb_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)

    def run(_launcher: Path, _progress: object) -> str:
        raise AssertionError("nothing is to be run")

    found = backtrace_by(run, Path("/bin/true"), answer_timeout_s=1)
    assert found.frames == ()
    assert stack_text(found) == "no backtrace: gdb is not installed (Debian package gdb)"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("../../softmmu/memory.c", "softmmu/memory.c"),
        ("../../hw/net/e1000.c", "hw/net/e1000.c"),
        ("/home/net/qemu/hw/block/fdc.c", "hw/block/fdc.c"),
        ("/build/qemu-7.2+dfsg/hw/isa/lpc_ich9.c", "hw/isa/lpc_ich9.c"),
        ("pthread_kill.c", "pthread_kill.c"),
        ("/usr/lib/elsewhere.c", "elsewhere.c"),
        ("", ""),
    ],
)
def test_a_file_keeps_its_folder_in_qemus_tree(path: str, name: str) -> None:
    assert source_file(path) == name
