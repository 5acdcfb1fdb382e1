# SPDX-License-Identifier: GPL-2.0-or-later
"""Who took a virtio feature away: from the texts of real builds and a made-up destination."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.packs.pack import StatePack
from harness.qemu.cmdline import Option
from harness.qualify.explained import LostBy, LostFeature, Origin, SetBy
from harness.qualify.features import (
    FeatureRefusal,
    GuestFeatures,
    _meant,
    _without_headers,
    explain_bit,
    explain_features,
    features_of,
    load_rules,
    parse_refusals,
)
from harness.qualify.qom import QomAnswers, VirtioDevice, _slot, backend_kind, origin
from harness.report.reasons import explained_text, origin_text, remedy_text
from harness.stream.fields import Field
from harness.stream.virtio import feature_names

NET = "0000:00:05.0/virtio-net"
LOG_7_2 = """\
qemu-system-x86_64: Features 0x10130af8024 unsupported. Allowed features: 0x10179bf0064
qemu-system-x86_64: Failed to load virtio-net:virtio
qemu-system-x86_64: error while loading state for instance 0x0 of device '0000:00:05.0/virtio-net'
qemu-system-x86_64: load of migration failed: Operation not permitted
"""
LOG_11_1 = """\
qemu-system-x86_64: warning: Machine type 'pc-i440fx-5.2' is deprecated: machines more than 3 years old are subject
qemu-system-x86_64: Features 0x00000000000000000000000130af0024 unsupported. Allowed features: \
0x00000000000000000000000179bf0064
qemu-system-x86_64: load of migration failed: Invalid argument: error while loading state for instance 0x0 of device \
'0000:00:05.0/virtio-net': Failed to load element of type virtio for virtio
"""
LOG_HEADERS = """\
qemu-system-x86_64: virtio-net: saved image requires vnet_hdr=on
qemu-system-x86_64: Failed to load virtio-net-device:vnet
qemu-system-x86_64: error while loading state for instance 0x0 of device '0000:00:05.0/virtio-net'
"""


def device(**values: object) -> VirtioDevice:
    return VirtioDevice(
        ident="vnet0",
        section_path="0000:00:05.0",
        driver="virtio-net-pci",
        inner="virtio-net-device",
        values=values,
        defaults={"mrg_rxbuf": True, "queue_reset": True, "host_mtu": 0, "hash": False},
        drive="net0",
    )


def answers(*options: Option, compat: dict[tuple[str, str], str] | None = None) -> QomAnswers:
    found = device()
    netdev = Option(name="netdev", first="user", props={"id": "net0"})
    return QomAnswers(
        machine="pc-q35-7.2", devices={found.section_path: found}, compat=compat, options=(netdev, *options)
    )


def guest(*bits: int, kind: str = "virtio-net") -> GuestFeatures:
    return GuestFeatures(section=NET, idstr=NET, kind=kind, features=sum(1 << bit for bit in bits))


@pytest.mark.parametrize(
    ("log", "seen", "allowed"),
    [(LOG_7_2, 0x10130AF8024, 0x10179BF0064), (LOG_11_1, 0x130AF0024, 0x179BF0064)],
)
def test_refusals_of_real_builds(log: str, seen: int, allowed: int) -> None:
    assert parse_refusals(log) == [FeatureRefusal(section=NET, seen=seen, allowed=allowed)]


def test_two_refusals_and_other_words() -> None:
    assert [r.section for r in parse_refusals(LOG_7_2 + LOG_HEADERS)] == [NET, NET]
    assert parse_refusals(LOG_HEADERS)[0].headers == "vnet_hdr=on"
    assert parse_refusals("Features of this QEMU: unsupported\nerror while loading state for instance") == []
    cut = parse_refusals(LOG_7_2.splitlines()[0])
    assert (cut[0].section, cut[0].seen) == (None, 0x10130AF8024)


def test_a_refusal_without_a_name_is_found_by_its_features() -> None:
    other = dataclasses.replace(guest(5), section="other", idstr="other")
    ours = guest(5, 15)
    allowed = 1 << 5
    for seen in (ours.features, ours.features & allowed):  # as up to 10.0, and as 11.1
        assert _meant(FeatureRefusal(section=None, seen=seen, allowed=allowed), [other, ours]) == [ours]
    assert _meant(FeatureRefusal(section=None, seen=1 << 20, allowed=allowed), [other, ours]) == []


def test_off_by_a_global() -> None:
    by = answers(Option(name="global", props={"virtio-net-pci.mrg_rxbuf": "off"}))
    lost = explain_bit(guest(15), 15, device(mrg_rxbuf=False), by, load_rules())
    assert (lost.lost_by, lost.property, lost.name, lost.bit) == ("property", "mrg_rxbuf", "VIRTIO_NET_F_MRG_RXBUF", 15)
    assert "property mrg_rxbuf is off, by -global virtio-net-pci.mrg_rxbuf=off" in explained_text(lost)
    assert "set -global virtio-net-pci.mrg_rxbuf=on on the new host instead of -global" in remedy_text(lost)
    assert "start the guest on the old host with mrg_rxbuf=off" in remedy_text(lost)


@pytest.mark.parametrize(
    "option",
    [
        Option(name="global", props={"virtio-net-device.mrg-rxbuf": False}),
        Option(name="global", first="virtio-net-device.mrg-rxbuf=off"),
        Option(name="global", props={"driver": "virtio-net-device", "property": "mrg-rxbuf", "value": "off"}),
    ],
)
def test_forms_of_a_global(option: Option) -> None:
    found = origin(answers(option), device(mrg_rxbuf=False), "mrg_rxbuf")
    assert found == Origin(by=SetBy.GLOBAL, driver="virtio-net-device", property="mrg-rxbuf", value="off")
    assert origin_text(found) == "-global virtio-net-device.mrg-rxbuf=off"


def test_a_global_of_another_device_is_not_blamed() -> None:
    other = Option(name="global", props={"virtio-blk-pci.mrg_rxbuf": "off"})
    found = origin(answers(other), device(mrg_rxbuf=False), "mrg_rxbuf")
    assert found is not None
    assert found.by is SetBy.NOT_DEFAULT


def test_device_comes_before_global() -> None:
    both = answers(
        Option(name="global", props={"virtio-net-pci.mrg_rxbuf": "on"}),
        Option(name="device", first="virtio-net-pci", props={"id": "vnet0", "mrg_rxbuf": False}),
    )
    found = origin(both, device(mrg_rxbuf=False), "mrg_rxbuf")
    assert found == Origin(by=SetBy.DEVICE, property="mrg_rxbuf", value="off")
    assert origin_text(found) == "mrg_rxbuf=off on its -device"


def test_off_by_the_machine_type() -> None:
    told = answers(compat={("virtio-device", "queue_reset"): "false"})
    lost = explain_bit(guest(40), 40, device(queue_reset=False), told, load_rules())
    assert "by machine type pc-q35-7.2, which sets virtio-device.queue_reset=false" in explained_text(lost)
    assert "instead of" not in remedy_text(lost)
    guessed = origin(answers(), device(queue_reset=False), "queue_reset")
    assert guessed is not None
    assert origin_text(guessed) == "machine type pc-q35-7.2 (the default of this QEMU is on)"


def test_off_by_default() -> None:
    lost = explain_bit(guest(57), 57, device(hash=False), answers(), load_rules())
    assert "by the default of this QEMU, which is off" in explained_text(lost)


def test_a_number_and_not_a_switch() -> None:
    lost = explain_bit(guest(3), 3, device(host_mtu=0), answers(), load_rules())
    assert (lost.lost_by, lost.property) == ("property", "host_mtu")
    assert "set host_mtu to what it is on the old host" in remedy_text(lost)
    assert "-global virtio-net-pci.host_mtu=" not in remedy_text(lost)


def test_a_property_that_it_needs() -> None:
    lost = explain_bit(guest(11), 11, device(host_tso4=True, csum=False), answers(), load_rules())
    assert (lost.lost_by, lost.property) == ("property", "csum")


def test_on_and_still_gone_is_the_backend() -> None:
    lost = explain_bit(guest(0), 0, device(csum=True), answers(), load_rules())
    assert (lost.lost_by, lost.backend, lost.backend_id, lost.backend_kind) == (
        "backend",
        "vnet-header",
        "net0",
        "user",
    )
    assert "vnet_hdr=on" in remedy_text(lost)
    assert "csum=off" in remedy_text(lost)


def test_headers_name_every_feature_that_needs_them() -> None:
    (refusal,) = parse_refusals(LOG_HEADERS)
    used = guest(0, 5, 11, 15, 32)
    found = list(_without_headers(refusal, used, device(), answers(), load_rules()))
    assert [(f.name, f.lost_by) for f in found] == [
        ("VIRTIO_NET_F_CSUM", "backend"),
        ("VIRTIO_NET_F_HOST_TSO4", "backend"),
    ]
    (bare,) = _without_headers(refusal, guest(5), device(), answers(), load_rules())
    assert (bare.bit, bare.name) == (None, "vnet_hdr")
    assert "None" not in explained_text(bare)


def test_a_build_that_does_not_know_it() -> None:
    lost = explain_bit(guest(40), 40, device(), answers(), load_rules())
    assert (lost.lost_by, lost.property) == ("build", "queue_reset")


def test_write_cache() -> None:
    disk = dataclasses.replace(device(**{"write-cache": "off"}), driver="virtio-blk-pci", ident="vnet0", drive="disk")
    by = answers(
        Option(name="blockdev", first="raw", props={"node-name": "disk"}),
        Option(name="device", first="virtio-blk-pci", props={"id": "vnet0", "write-cache": "off"}),
    )
    lost = explain_bit(guest(9, kind="virtio-blk"), 9, disk, by, load_rules())
    assert lost.lost_by == "backend"
    assert (lost.backend, lost.backend_id, lost.backend_kind) == ("write-cache", "disk", "raw")
    assert "(by write-cache=off on its -device)" in explained_text(lost)
    assert "-global virtio-blk-pci.write-cache=on" in remedy_text(lost)


def test_nobody_known() -> None:
    rules = load_rules()
    assert explain_bit(guest(50), 50, device(), answers(), rules).lost_by == "unknown"
    assert explain_bit(guest(15), 15, None, answers(), rules).lost_by == "no-device"
    assert explain_bit(guest(61), 61, device(guest_rsc_ext=True), answers(), rules).lost_by == "other"


def test_the_kind_of_a_backend() -> None:
    assert backend_kind(answers(), device()) == "user"
    assert backend_kind(answers(), dataclasses.replace(device(), drive="")) == ""
    assert backend_kind(answers(), dataclasses.replace(device(), drive="x")) == ""


@pytest.mark.parametrize("name", load_rules().backends)
def test_each_backend_has_its_sentences(name: str) -> None:
    lost = LostFeature(
        section=NET, device="net", driver="virtio-net-pci", bit=0, name="F", lost_by=LostBy.BACKEND, property="csum",
        backend=name, backend_id="net0", backend_kind="user",
    )  # fmt: skip
    assert "{" not in explained_text(lost) + remedy_text(lost)
    assert remedy_text(lost).endswith("which takes a restart of the guest")


def test_slots() -> None:
    assert (_slot(40), _slot(0xFA), _slot("05.0")) == ("05.0", "1f.2", "05.0")


def number(path: str, value: int) -> Field:
    return Field(name=path, path=path, offset=0, size=8, type="uint64", value=value)


def test_features_of_all_halves() -> None:
    fields = [
        number("guest_features_lo", 0x20),
        number("virtio/64bit_features/guest_features", 1 << 32 | 0x20),
        number("virtio/128bit_features/guest_features_ex[1]", 0b10),
    ]
    assert features_of(fields) == 1 << 65 | 1 << 32 | 0x20
    assert features_of(fields[:1]) == 0x20


def test_data_names_features_that_exist() -> None:
    """A feature of the data that no device has would never be found."""
    kinds = ("virtio-net", "virtio-blk", "virtio-scsi", "virtio-balloon", "virtio-serial", "virtio-gpu")
    known = {name for kind in kinds for name in feature_names(kind, (1 << 70) - 1)}
    assert set(load_rules().features) <= known
    for rule in load_rules().features.values():
        assert rule.property or rule.backend


def test_data_of_an_unknown_backend(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("backends: {}\nfeatures:\n  VIRTIO_NET_F_CSUM: {backend: nowhere}\n")
    with pytest.raises(ConfigError, match="nowhere"):
        load_rules(file)


def test_another_failure_starts_no_qemu(make_pack: Callable[..., Path], binary: object) -> None:
    with StatePack(make_pack()) as pack:
        log = "qemu-system-x86_64: Missing section footer for cpu"
        assert explain_features(log, pack, "bound", pack.machine, binary) == []  # type: ignore[arg-type]
