# SPDX-License-Identifier: GPL-2.0-or-later
"""The argument of one option, in each form that QEMU takes."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.adopt.configuration import Value
from harness.adopt.place import TextPlace
from harness.adopt.values import read_character, read_cpu, read_global, read_json, read_options
from harness.errors import UsageError

HERE = TextPlace("vm.txt", 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("virtio-blk-pci,drive=d0", {"driver": "virtio-blk-pci", "drive": "d0"}),
        ("driver=virtio-blk-pci,drive=d0", {"driver": "virtio-blk-pci", "drive": "d0"}),
        ("a,,b,id=x,,,,y,c=d=e", {"driver": "a,b", "id": "x,,y", "c": "d=e"}),
        ("a,share,readonly,noserver", {"driver": "a", "share": "on", "readonly": "on", "server": "off"}),
        ("a,b=1,b=2", {"driver": "a", "b": "2"}),
        ("a,b=", {"driver": "a", "b": ""}),
        ("a,", {"driver": "a"}),
        ("", {}),
        ("a,zoned=true,zoned.zone_size=4K", {"driver": "a", "zoned": "true", "zoned.zone_size": "4K"}),
    ],
)
def test_key_and_value_pairs(text: str, expected: Mapping[str, Value]) -> None:
    assert read_options(text, HERE, first="driver") == expected


@pytest.mark.parametrize("text", ["=x", "a,=x", "a,,", ",a", "no", "a,no,b=1"])
def test_a_pair_without_a_key(text: str) -> None:
    with pytest.raises(UsageError, match=r"^vm\.txt:3: expected key=value, found '"):
        read_options(text, HERE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file.driver=raw,file.file.filename=x", {"file": {"driver": "raw", "file": {"filename": "x"}}}),
        ("children.1=b,children.0=a", {"children": ["a", "b"]}),
        ("a.0.b=1,a.0.c=2,a.1.b=3", {"a": [{"b": "1", "c": "2"}, {"b": "3"}]}),
        ("file=x.img,file.locking=off,format=raw", {"file": {"filename": "x.img", "locking": "off"}, "format": "raw"}),
        ("file.locking=off,file=x.img", {"file": {"filename": "x.img", "locking": "off"}}),
        ("addr.type=unix,addr.path=/a,,b", {"addr": {"type": "unix", "path": "/a,b"}}),
    ],
)
def test_dotted_keys_nest(text: str, expected: Mapping[str, Value]) -> None:
    assert read_options(text, HERE, nested=True) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a=1,a.b=2", "'a.b' and a value of 'a' itself do not go together"),
        ("a.b=1,a=2", "'a' has a value, and keys below it as well"),
        ("x.file=1,x.file.y=2", "'x.file.y' and a value of 'file' itself do not go together"),
        ("a.0=x,a.2=y", "expected the numbers from 0 on below 'a', found '0, 2'"),
        ("a.0=x,a.b=y", "expected the numbers from 0 on below 'a', found '0, b'"),
        ("a..b=1", "expected a key such as file.driver, found 'a..b'"),
        (".a=1", "expected a key such as file.driver, found '.a'"),
        (".".join("a" * 40) + "=1", "expected a key such as file.driver, found '"),
    ],
)
def test_dotted_keys_that_contradict_each_other(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read_options(text, HERE, nested=True)
    assert str(error.value).startswith(f"vm.txt:3: {complaint}")


def test_a_key_that_is_collected_is_a_list_however_often_it_is_given() -> None:
    twice = read_options("user,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4", HERE, first="type", lists=("hostfwd",))
    assert twice == {"type": "user", "hostfwd": ["tcp::1-:2", "tcp::3-:4"]}
    assert read_options("hostfwd=a", HERE, lists=("hostfwd",)) == {"hostfwd": ["a"]}
    assert read_options('{"hostfwd": "a"}', HERE, lists=("hostfwd",)) == {"hostfwd": ["a"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"driver":"nvme","port":16,"on":true,"none":null}', {"driver": "nvme", "port": 16, "on": True, "none": None}),
        ("{'driver':'nvme','a':\"it's\"}", {"driver": "nvme", "a": "it's"}),
        ("{'a':'it\\'s \"b\"'}", {"a": 'it\'s "b"'}),
        ('{"a":[{"b":1.5}]}', {"a": [{"b": 1.5}]}),
        ('{"a":18446744073709551615}', {"a": 18446744073709551615}),
        ("{}", {}),
    ],
)
def test_json(text: str, expected: Mapping[str, Value]) -> None:
    assert read_options(text, HERE, first="driver") == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{'a'}",
        '{"a":1}x',
        '{"a":NaN}',
        '{"a":1e999}',
        '{"a":18446744073709551616}',
        '{"a":' + "9" * 5000 + "}",
        '{"a":"\\u0000"}',
        '{"a":"\\ud800"}',
        '{"\\ud800":1}',
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":2}}',
        '{"a":' * 40 + "1" + "}" * 40,
        '{"a":' * 100_000,
        '{"a":' + "[" * 100_000,
        "{" + "'" * 10_001,
        '{"a":"\t"}',
        "{a:1}",
        '{"a":$(id)}',
    ],
)
def test_json_that_qemu_does_not_take(text: str) -> None:
    with pytest.raises(UsageError, match=r"^vm\.txt:3: "):
        read_json(text, HERE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", {"model": "host"}),
        ("qemu64,+ssse3,-vmx,sse4.1=on,check", {"ssse3": "on", "vmx": "off", "sse4.1": "on", "check": "on"}),
        # QEMU gives + and - the last word, - before +
        ("qemu64,+a,a=off", {"a": "on"}),
        ("qemu64,-a,+a", {"a": "off"}),
        ("host,hv_relaxed,hv_spinlocks=0x1fff,kvm=off", {"hv-relaxed": "on", "hv-spinlocks": "0x1fff", "kvm": "off"}),
        ("max,", {}),
    ],
)
def test_cpu_features(text: str, expected: Mapping[str, Value]) -> None:
    assert read_cpu(text, HERE) == {"model": text.split(",")[0], **expected}


@pytest.mark.parametrize("text", ["", ",+a", "qemu64,+", "qemu64,=on"])
def test_cpus_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^vm\.txt:3: expected a CPU model"):
        read_cpu(text, HERE)


def test_both_forms_of_a_global() -> None:
    expected = {"driver": "ide-hd", "property": "serial", "value": "a,b.c=d"}
    assert read_global("ide-hd.serial=a,b.c=d", HERE) == expected
    assert read_global("driver=ide-hd,property=serial,value=a,,b.c=d", HERE) == expected
    assert read_global("driver=fw_cfg,property=a.b,value=1", HERE)["property"] == "a.b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stdio", {"backend": "stdio"}),
        ("none", {"backend": "none"}),
        ("mon:stdio", {"backend": "stdio", "mux": "on"}),
        ("chardev:ch0", {"chardev": "ch0"}),
        ("vc", {"backend": "vc"}),
        ("vc:640x480", {"backend": "vc", "width": "640", "height": "480"}),
        ("vc:80Cx24C", {"backend": "vc", "cols": "80", "rows": "24"}),
        ("file:/tmp/a,b", {"backend": "file", "path": "/tmp/a,b"}),
        ("pipe:/tmp/a", {"backend": "pipe", "path": "/tmp/a"}),
        ("/dev/ttyS0", {"backend": "serial", "path": "/dev/ttyS0"}),
        ("/dev/parport0", {"backend": "parallel", "path": "/dev/parport0"}),
        ("COM1", {"backend": "serial", "path": "COM1"}),
        (
            "tcp:localhost:4444,server,nowait",
            {"backend": "socket", "host": "localhost", "port": "4444", "server": "on", "wait": "off"},
        ),
        ("telnet::23", {"backend": "socket", "host": "", "port": "23", "telnet": "on"}),
        ("unix:/tmp/a,,b,server=on", {"backend": "socket", "path": "/tmp/a,b", "server": "on"}),
        (
            "udp:h:1@:2",
            {"backend": "udp", "host": "h", "port": "1", "localaddr": "", "localport": "2"},
        ),
        ("udp::1", {"backend": "udp", "host": "", "port": "1"}),
    ],
)
def test_character_devices_of_old(text: str, expected: Mapping[str, Value]) -> None:
    assert read_character(text, HERE) == expected


@pytest.mark.parametrize("text", ["", "tcp:x", "udp:x", "vc:1x", "mon:mon:stdio", "exec:id", "unix:,=", "chardev:"])
def test_character_devices_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^vm\.txt:3: expected "):
        read_character(text, HERE)


KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)
VALUES = st.text(max_size=40)


@given(
    st.dictionaries(KEYS, VALUES, max_size=8), VALUES.filter(lambda text: text and text[0] != "{" and "=" not in text)
)
def test_what_is_quoted_as_qemu_wants_it_comes_back(pairs: dict[str, str], driver: str) -> None:
    text = ",".join([driver.replace(",", ",,"), *(f"{key}={value.replace(',', ',,')}" for key, value in pairs.items())])
    if driver.startswith(","):
        return  # QEMU takes a comma in front for the end of an empty name
    assert read_options(text, HERE, first="driver") == {"driver": driver, **pairs}


TREES = st.recursive(
    VALUES.filter(lambda text: "\0" not in text) | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_json_comes_back(tree: dict[str, Value]) -> None:
    assert read_options(json.dumps(tree), HERE) == tree
    assert read_options(json.dumps(tree, ensure_ascii=False), HERE) == tree


def dotted(prefix: str, value: object) -> list[tuple[str, str]]:
    """The leaves of a tree as keyval has them."""
    if isinstance(value, str):
        return [(prefix, value)]
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for step, inner in steps for leaf in dotted(f"{prefix}.{step}" if prefix else str(step), inner)]


TEXT_TREES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, min_size=1, max_size=4) | st.dictionaries(KEYS, inner, min_size=1, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, TEXT_TREES, max_size=6), st.randoms())
def test_nested_values_come_back_from_dotted_keys_in_any_order(tree: dict[str, Value], order: object) -> None:
    leaves = dotted("", tree)
    order.shuffle(leaves)  # type: ignore[attr-defined]
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in leaves)
    assert read_options(text, HERE, nested=True) == tree
