# SPDX-License-Identifier: GPL-2.0-or-later
"""Text around a command line: which start is meant, and which words it has, as bash would make them."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.adopt.commandline import read_command_line
from harness.adopt.words import MAX_TEXT, read_start
from harness.errors import UsageError

QEMU = "qemu-system-x86_64"
BASH = shutil.which("bash") or "/bin/bash"


def words(text: str) -> list[str]:
    return [word.text for word in read_start(text, "vm.txt").words]


@pytest.mark.parametrize(
    ("text", "binary"),
    [
        ("qemu-system-x86_64 -m 1G", "qemu-system-x86_64"),
        ("/opt/q/bin/qemu-system-x86_64 -m 1G", "/opt/q/bin/qemu-system-x86_64"),
        ("'/opt/my q/qemu-system-i386' -m 1G", "q/qemu-system-i386"),
        ('"C:\\Program Files\\qemu\\qemu-system-x86_64.exe" ^\r\n -m 1G', "Files\\qemu\\qemu-system-x86_64.exe"),
        ("qemu-system-x86_64.exe `\n -m 1G", "qemu-system-x86_64.exe"),
        ("/nix/store/x/bin/.qemu-system-x86_64-wrapped -m 1G", "/nix/store/x/bin/.qemu-system-x86_64-wrapped"),
        ('CMD="qemu-system-x86_64 -m"\nCMD="$CMD 1G"\necho\neval $CMD', "qemu-system-x86_64"),
        ('CMD=(qemu-system-x86_64 -m 1G)\n"${CMD[@]}"', "qemu-system-x86_64"),
        ("/usr/libexec/qemu-kvm -m 1G", "/usr/libexec/qemu-kvm"),
        ("LC_ALL=C QEMU_AUDIO_DRV=none /usr/bin/kvm -m 1G", "/usr/bin/kvm"),
        ("kvm -m 1G", "kvm"),
        ("sudo -E taskset -c 0 qemu-system-x86_64 -m 1G", "qemu-system-x86_64"),
        ("$ qemu-system-aarch64 -m 1G", "qemu-system-aarch64"),
        ("[root@host ~]# /usr/bin/qemu-system-x86_64 -m 1G", "/usr/bin/qemu-system-x86_64"),
        ("ExecStart=/usr/bin/qemu-system-x86_64 -m 1G", "/usr/bin/qemu-system-x86_64"),
        ("cd /vm && ./qemu-system-x86_64 -m 1G", "./qemu-system-x86_64"),
        ("QEMU=/opt/qemu-system-x86_64\n$QEMU -m 1G", "/opt/qemu-system-x86_64"),
        ('export QEMU="qemu-system-x86_64"\n"${QEMU}" -m 1G', "qemu-system-x86_64"),
        ("root 12 0.0 1.0 99 9 ? Sl 10:00 0:01 /usr/bin/kvm -m 1G", "/usr/bin/kvm"),
        ("4711 qemu-system-x86_64 -m 1G", "qemu-system-x86_64"),
        ("Jan 05 10:00:00 host run[1]: /usr/bin/qemu-system-x86_64 -m '1G'", "/usr/bin/qemu-system-x86_64"),
        ("-m 1G", ""),
        ("\n  -m 1G\n", ""),
        ("/usr/bin/qemu-system-x86_64\0-m\x001G\0", "/usr/bin/qemu-system-x86_64"),
        ("qemu-system-x86_64 \\\r\n -m 1G\r\n", "qemu-system-x86_64"),
        ("(qemu-system-x86_64 -m 1G) &", "qemu-system-x86_64"),
        ("qemu-system-x86_64\u00a0-m \u20031G", "qemu-system-x86_64"),
        ("nohup qemu-system-x86_64 -m 1G > /dev/null 2>&1 &", "qemu-system-x86_64"),
        ("qemu-system-x86_64 -m 1G | tee log", "qemu-system-x86_64"),
        ("qemu-system-x86_64 -m 1G # for -cpu host", "qemu-system-x86_64"),
        ("A='-m 1G'\nqemu-system-x86_64 $A\nfor cmd in qemu-system-x86_64 sgdisk; do", "qemu-system-x86_64"),
        ('A=(-m)\nif x; then A+=(1G); fi\nqemu-system-x86_64 "${A[@]}"', "qemu-system-x86_64"),
        ("A=()\n[ -e x ] && A=(-m 1G)\n local -a B=(); GDK=x qemu-system-x86_64 ${A[@]} ${B[*]}", "qemu-system-x86_64"),
        ('A=( # a\n -m \\\n#---\n# it\'s\n\\\n 1G\n)\nqemu-system-x86_64 "${A[@]}"', "qemu-system-x86_64"),
        ('O=-m\nO="$O 1G"\nqemu-system-x86_64 $O "$@"', "qemu-system-x86_64"),
        ("which qemu-system-x86_64 && qemu-system-x86_64 -m 1G; echo", "qemu-system-x86_64"),
    ],
)
def test_where_a_start_begins_and_ends(text: str, binary: str) -> None:
    start = read_start(text, "vm.txt")
    assert (start.binary, [word.text for word in start.words]) == (binary, ["-m", "1G"])


@pytest.mark.parametrize(
    "behind",
    [
        "2024-01-05T10:02:00.0Z qemu-system-x86_64: terminating on signal 15 from pid 1",
        "qemu-system-x86_64: -device foo: it's no device",
        "# apt install qemu-system-x86 qemu-kvm",
        "and then I ran qemu-system-x86_64 again",
        "it works with /usr/bin/qemu-system-x86_64",
        "-accel kvm -cpu host",
    ],
)
def test_what_only_speaks_of_an_emulator_is_no_start(behind: str) -> None:
    start = read_start(f"qemu-system-x86_64 -m 1G;\n{behind}\n", "vm.txt")
    assert (start.binary, [word.text for word in start.words]) == ("qemu-system-x86_64", ["-m", "1G"])


def test_of_several_starts_the_last_one_counts_and_lines_are_those_of_the_file() -> None:
    start = read_start("kvm -m 1\n\nqemu-system-i386 \\\n  -m \\\n  2\nshutting down\n", "vm.txt")
    assert start.binary == "qemu-system-i386"
    assert [(word.text, word.line) for word in start.words] == [("-m", 4), ("2", 5)]


def test_lines_that_begin_with_an_option_belong_to_the_command_without_a_backslash() -> None:
    assert words(f"{QEMU}\n -m 1G # memory\n # nothing\n\n -smp 2\nnext") == ["-m", "1G", "-smp", "2"]


def test_a_mail_that_was_wrapped_within_an_option_goes_on() -> None:
    text = f"  {QEMU} -name a -S -object\n  secret,id=s -cpu\nqemu64,check --m\n1G -S\nHere it hangs\n"
    assert words(text) == ["-name", "a", "-S", "-object", "secret,id=s", "-cpu", "qemu64,check", "--m", "1G", "-S"]


def test_a_line_of_ps_has_lost_its_quotes() -> None:
    line = (
        "libvirt+ 1234 5.0 1.0 999 88 ? Sl 10:00 1:00 /usr/bin/qemu-system-x86_64 -name guest=it's my vm,process=x -S "
        '-device {"driver":"virtio-blk-pci","id":"a b"} -append root=/dev/sda console=ttyS0 -snapshot my disk.img'
    )
    assert words(f"USER PID\n{line}\nroot 2 0.0 kthreadd") == [
        "-name",
        "guest=it's my vm,process=x",
        "-S",
        "-device",
        '{"driver":"virtio-blk-pci","id":"a b"}',
        "-append",
        "root=/dev/sda console=ttyS0",
        "-snapshot",
        "my disk.img",
    ]


def test_parentheses_that_nobody_quoted_belong_to_their_word() -> None:
    assert words(f"({QEMU} -device isa-applesmc,osk=hard(c)work -S) &") == [
        "-device",
        "isa-applesmc,osk=hard(c)work",
        "-S",
    ]


def test_options_of_an_array_have_the_lines_that_they_stand_on() -> None:
    start = read_start(f'args=(\n -m\n 1G # it\'s\n -smp 2\n)\n{QEMU} "${{args[@]}}" -S\n', "vm.txt")
    assert [(word.text, word.line) for word in start.words] == [("-m", 2), ("1G", 3), ("-smp", 4), ("2", 4), ("-S", 6)]


def test_json_that_nobody_quoted_is_one_word() -> None:
    assert words(QEMU + ' -device {"driver":"nvme", "id":"a"} -S') == [
        "-device",
        '{"driver":"nvme", "id":"a"}',
        "-S",
    ]


SCRIPT = r"""#!/bin/bash
# it's a script
RAM=4G; CORES=2
DISK="/vms/my disk.img"
NET=
args=(
  -m "$RAM" -smp "${CORES}"   # it's enough
  -drive "file=$DISK,if=virtio"
)
args+=(-device "virtio-net-pci,netdev=n0")
OPTS="-vga std"
OPTS+=" -usb"
unset_one=$(nproc)
exec qemu-system-x86_64 "${args[@]}" $OPTS $NET -name "${NAME:-web}" -serial file:$HOME/log "$@"
"""


def test_variables_and_arrays_that_a_script_sets() -> None:
    assert words(SCRIPT) == [
        *("-m", "4G", "-smp", "2", "-drive", "file=/vms/my disk.img,if=virtio"),
        *("-device", "virtio-net-pci,netdev=n0", "-vga", "std", "-usb", "-name", "web", "-serial", "file:$HOME/log"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "vm.txt:1: no start of QEMU found"),
        ("hello", "vm.txt:1: no start of QEMU found"),
        (f"\n{QEMU} -m 1G \\\n -name 'x\n", "vm.txt:3: a single quote that is not closed"),
        (f'{QEMU} -m 1G \\\n -name "x\n', "vm.txt:2: a double quote that is not closed"),
        (f'{QEMU} -m 1G "${{args[@]}}"', "vm.txt:1: what '${args[@]}' stands for is not known: write the options out"),
        (f"{QEMU} -S\n  -{'x' * 9}\n", "vm.txt:2: QEMU has no option '-xxxxxxxxx'"),
        (f"{QEMU} $OPTS -m 1G", "vm.txt:1: what '$OPTS' stands for is not known: write the options out"),
        (f"{QEMU} -m", "vm.txt:1: option -m needs an argument"),
        (f"{QEMU} {'-S ' * 30_000}", "vm.txt:1: more than 20000 arguments"),
        (f"1 {QEMU} {'-S ' * 30_000}", "vm.txt:1: more than 20000 arguments"),
        (f"{QEMU} -name {'x' * 3_000_000}", "vm.txt:1: a command line longer than 2 MiB"),
        ("x" * (MAX_TEXT + 1), "vm.txt:1: longer than 16 MiB"),
    ],
)
def test_what_cannot_be_taken_apart_is_named_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read_command_line(text, "vm.txt")
    assert str(error.value).startswith(complaint)


def bash(script: str) -> list[str]:
    """The arguments that bash gives a program named as an emulator."""
    script = f'{QEMU}() {{ printf "%s\\0" "$@"; }}\n{script}'
    done = subprocess.run([BASH, "-c", script], capture_output=True, check=True, timeout=20, env={"PATH": "/nowhere"})
    return done.stdout.decode().split("\0")[:-1]


#: Pieces of words that run nothing and open nothing.
PIECES = st.sampled_from(
    [
        *("a", "-b", "c=d", ",", "{", "}", "é", "a#", "~x", "%", "=", ":", "1", "@", "+", "]", "\\\n"),
        *("'s p'", "'\"'", "'\\'", "'$x'", "''", '"s p"', '"\'"', '"\\"\\\\\\$\\`\\n"', '"a\\\nb"', '""', '"#"'),
        *("x\\ y", "\\'", '\\"', "\\\\", "\\$", "\\#", "\\;", "\\&"),
        *("${V}", '"$V"', '"${V}x"', "${E}", '"$E"', "${S}", '"$S"', "${N:-d}", "${V:-d}", "${E:-d}", "${E-d}"),
        *('"${A[@]}"', '"x${A[@]}"', "${A[@]}", '"${Z[@]}"', "$@", '"$@"'),
    ]
)
GAPS = st.sampled_from([" ", "  ", "\t", " \\\n", "\\\n ", " 2>/dev/null ", " >/dev/null "])
SETTINGS = "V=v\nE=\nS='s1 s2'\nA=(a1 'a 2' a3)\nZ=()\n"


@given(st.lists(st.tuples(GAPS, st.lists(PIECES, min_size=1, max_size=4)), max_size=6))
@settings(max_examples=150, deadline=None)
def test_words_are_those_of_bash(parts: list[tuple[str, list[str]]]) -> None:
    command = f"{QEMU} -m" + "".join(gap + "".join(pieces) for gap, pieces in parts)
    assert words(f"{SETTINGS}{command}\n") == bash(f"{SETTINGS}{command.replace('>/dev/null', '2>/dev/null')}\n")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=8))
def test_words_that_a_shell_quoted_come_back(arguments: list[str]) -> None:
    arguments = [argument.replace("\r\n", "\n") for argument in arguments]
    assert words(f"{QEMU} -m {shlex.join(arguments)}") == ["-m", *arguments]


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=20), max_size=8))
def test_words_of_a_process_come_back(arguments: list[str]) -> None:
    assert words("\0".join(["/usr/bin/kvm", *arguments]) + "\0") == arguments


#: What a parser may stumble over.
TRICKS = st.sampled_from(
    [
        *(f"{QEMU} ", "kvm ", "/usr/bin/qemu-kvm ", "\n", "\\\n", "\0", "'", '"', "`", "$(", "${", "$x", "((", ")"),
        *("{", '{"a":', "[", "]", "}", ",", ",,", "=", ".", "..", "-", "--", "#", ";", "&", "|", "<", ">", "1 ", "\\"),
        *("-device ", "-drive ", "-m ", "-set ", "-readconfig ", "-cpu ", "-global ", "-nic ", "-net ", "-virtfs "),
        *("-serial ", "-object ", "-machine ", "-smp ", "-usbdevice ", "-soundhw ", "-audio ", "-balloon ", "-hda "),
        *("device.a.b=c", "nic,model=", "user,id=a", "file=x,file.y=z", "a.0.b=", "smp=2", "smp.cpus=2", "\ud800", "é"),
        *("args=(", "args+=(", "A=", "export ", '"${args[@]}"', "ExecStart=", "\x1b[31m", "\u202e", "999999999999999"),
    ]
)
HOSTILE = st.lists(TRICKS | st.text(max_size=6), max_size=24).map("".join)


@given(HOSTILE)
@settings(max_examples=1000, deadline=None)
def test_any_text_is_a_configuration_or_a_clear_error(text: str) -> None:
    for given_text in (text, f"{QEMU} {text}", f"{QEMU}\0{text}"):
        try:
            found = read_command_line(given_text, "vm.txt", read=lambda path: path)
        except UsageError as error:
            message = str(error)
            assert message.isprintable() or message == message.encode("utf-8", "replace").decode()
        else:
            assert all(option.line >= 1 for option in found.options)


@pytest.mark.parametrize(
    "text",
    [
        f"{QEMU} " * 60_000,
        f"-x {QEMU} " * 60_000,
        f"-x {QEMU} -y\n" * 40_000,
        f"{QEMU} 'x\n" * 40_000,
        f"A=({QEMU} 'x\n" * 30_000 + f"{QEMU} $A\n",
        "A=$A$A$A$A$A$A$A$A\n" * 40_000 + f"{QEMU} $A\n",
        "A=ab\n" + "A=$A$A$A$A$A$A$A$A\n" * 2_000 + f"{QEMU} $A\n",
        f"{QEMU} " + '{"a":[ ' * 30_000,
        f"{QEMU} " + '{"a": ' * 30_000,
        f"{QEMU} " + "> " * 100_000,
        f"{QEMU} " + "\n" * 100_000 + "x",
        f"{QEMU} " + "\\\n" * 200_000 + "x",
        f"{QEMU} " + "# \n" * 200_000 + "-S",
        "&/a" * 100_000,
        f"{QEMU} -device a," + ",".join(f"k{number}=v" for number in range(40_000)),
        f"{QEMU} -device a," + "x," * 100_000,
        f"{QEMU} -drive " + ".".join("a" * 100_000) + "=1",
        f"{QEMU} -drive " + ",".join(f"a.{number}=1" for number in range(4_000)),
        f"{QEMU} -cpu a," + "+a," * 100_000,
        f"{QEMU} -smbios " + "value=1," * 40_000,
    ],
    ids=range(20),
)
def test_a_text_made_to_take_long_is_read_or_refused(text: str) -> None:
    """A reader that takes the square of the text's length would not come to an end here."""
    complaint = ""
    try:
        found = read_command_line(text, "vm.txt")
    except UsageError as error:
        complaint = str(error)
    assert complaint.startswith("vm.txt:") if complaint else found.binary == QEMU
    assert len(complaint) < 400
