# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains become what libvirt makes of them; what nobody understands is told; what is no domain is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_libvirt import DOMAINS, STARTED, told

from harness.adopt.commandline import read_command_line
from harness.adopt.configuration import Configuration, SaidOption
from harness.adopt.domain import read_domain
from harness.errors import UsageError

ALL = sorted(DOMAINS.glob("*.xml"))


def _domain(devices: str = "", rest: str = "", machine: str = "q35") -> Configuration:
    os_ = f"<os><type arch='x86_64' machine='{machine}'>hvm</type></os>"
    text = (
        f"<domain type='kvm'><name>one</name><memory>1048576</memory>{os_}{rest}<devices>{devices}</devices></domain>"
    )
    return read_domain(text, "one.xml")


def _options(configuration: Configuration, name: str) -> list[SaidOption]:
    return [option for option in configuration.options if option.name == name]


def _devices(configuration: Configuration) -> list[object]:
    return [option.values["driver"] for option in _options(configuration, "device")]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_domain_is_what_libvirt_makes_of_it(path: Path) -> None:
    interfaces = path.stem in STARTED
    ours = told(read_domain(path.read_text(), path.name), interfaces=interfaces)
    recorded = path.with_suffix(".argv")
    libvirts = told(read_command_line(recorded.read_text(), recorded.name), interfaces=interfaces)
    assert ours - libvirts == {}
    assert libvirts - ours == {}


@pytest.mark.parametrize("path", sorted((DOMAINS / "defined").glob("*.xml")), ids=lambda path: path.stem)
def test_a_domain_that_libvirt_has_completed_is_the_same(path: Path) -> None:
    """``virsh dumpxml`` behind ``virsh define``: with all controllers, ids of machines and addresses."""
    completed = read_domain(path.read_text(), path.name)
    written = read_domain((DOMAINS / path.name).read_text(), path.name)
    assert told(completed, interfaces=True) == told(written, interfaces=True)
    assert completed.unread == ()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_nothing_of_these_domains_is_passed_over(path: Path) -> None:
    assert read_domain(path.read_text(), path.name).unread == ()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_bus_comes_before_what_is_on_it(path: Path) -> None:
    there = {"pci.0", "pcie.0", "ide"}
    for option in _options(read_domain(path.read_text(), path.name), "device"):
        bus = str(option.values.get("bus", "pci.0"))
        assert bus in there or bus.rpartition(".")[0] in there, option
        there.add(str(option.values.get("id")))


def test_there_are_domains_to_look_at() -> None:
    assert len(ALL) >= 20


def test_what_nobody_understands_is_told_with_its_line() -> None:
    text = Path(DOMAINS / "minimal-q35.xml").read_text()
    strange = text.replace(
        "</devices>", "\n<flux capacity='3'/>\n<input type='tablet' bus='usb' mood='good'/></devices>"
    )
    told_ = {part.path: part.line for part in read_domain(strange, "strange.xml").unread}
    assert told_ == {"devices/flux": 7, "devices/input@mood": 8}


@pytest.mark.parametrize(
    ("device", "path"),
    [
        ("<disk device='disk'><source file='a'/><target dev='sda' bus='warp'/></disk>", "devices/disk"),
        ("<video><model type='hologram'/></video>", "devices/video"),
        ("<sound model='loud'/>", "devices/sound"),
        ("<panic model='calm'/>", "devices/panic"),
        ("<iommu model='odd'/>", "devices/iommu"),
        ("<memory model='drum'><target><size>4</size></target></memory>", "devices/memory"),
        ("<hostdev mode='subsystem' type='moon'/>", "devices/hostdev"),
        ("<controller type='warp' index='0'/>", "devices/controller"),
        ("<input type='glove' bus='usb'/>", "devices/input"),
    ],
)
def test_a_device_of_an_unknown_kind_is_told(device: str, path: str) -> None:
    assert [part.path for part in _domain(device).unread] == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one.xml:1: no XML: no element found"),
        ("<domain>", "one.xml:1: no XML: no element found"),
        ("<domain type='kvm'>\n</domian>", "one.xml:2: no XML: mismatched tag"),
        ("<pool/>", "one.xml:1: <pool>: expected a libvirt domain"),
        ("<domain type='xen'/>", "one.xml:1: <domain>: type='xen': expected a domain of QEMU's"),
        ("<domain type='kvm'><os><type>exe</type></os></domain>", "<type> is 'exe': expected hvm"),
        ("<!DOCTYPE domain SYSTEM 'file:///etc/shadow'>\n<domain type='kvm'/>", "one.xml:1: a DTD"),
        ("\n<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>", "one.xml:2: a DTD"),
        ("<domain>" * 40, "more than 32 elements within each other"),
        (f"<domain>{'<a/>' * 20_000}</domain>", "more than 20000 elements"),
        (
            f"<domain type='kvm'><os><type>hvm</type></os><devices>{'<hub/>' * 1001}</devices></domain>",
            "<hub>: more than 1000 devices",
        ),
        (
            f"<domain type='kvm'><os><type>hvm</type></os><cpu><numa>{'<cell/>' * 129}</numa></cpu></domain>",
            "<cell>: more than 128 nodes",
        ),
        ("<domain/>" + " " * (4 << 20), "expected a libvirt domain of at most"),
        ("<domain type='kvm'>\x00</domain>", "one.xml:1: no XML: not well-formed"),
    ],
)
def test_what_is_no_domain_is_refused_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_domain(text, "one.xml")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (
            "<disk device='disk'><source file='a'/><target dev='x9'/></disk>",
            "target dev='x9': expected a name such as vda",
        ),
        ("<controller type='usb' model='usb9'/>", "<controller>: model='usb9': expected one of none, piix3-uhci"),
        ("<controller type='pci' index='1' model='pci-what'/>", "model='pci-what': expected one of pci-root"),
        ("<rng model='virtio'><backend model='random'/><rate bytes='many'/></rng>", "bytes='many': expected a number"),
        (
            "<hub type='usb'><address type='usb' bus='7' port='1'/></hub>",
            "<address>: there is no <controller type='usb' index='7'>",
        ),
        (
            "<hub type='usb'><address type='usb' bus='0' port=':'/></hub><input type='tablet' bus='usb'/>",
            "<hub>: expected a USB port such as 2 or 1.3, found ':'",
        ),
    ],
)
def test_what_libvirt_would_not_take_is_refused(devices: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        _domain(devices)
    assert message in str(refused.value)
    assert str(refused.value).startswith("one.xml:1: ")


@pytest.mark.parametrize(
    ("unit", "mebibytes"),
    [("KiB", "1024"), ("k", "1024"), ("bytes", "1"), ("MiB", str(1 << 20)), ("KB", "1000")],
)
def test_memory_has_units(unit: str, mebibytes: str) -> None:
    text = f"<domain type='kvm'><memory unit='{unit}'>1048576</memory><os><type>hvm</type></os></domain>"
    assert _options(read_domain(text, "m.xml"), "m")[0].values["size"] == mebibytes


def test_what_is_said_past_libvirt_changes_what_libvirt_says() -> None:
    text = (DOMAINS / "extra-arguments.xml").read_text()
    arguments = ("-machine", "vmport=off", "-cpu", "Nehalem", "-smp", "4")
    more = "".join(f'<qemu:arg value="{word}"/>' for word in arguments)
    domain = read_domain(text.replace("<qemu:env", f"{more}<qemu:env"), "more.xml")
    (machine,), (cpu,), (smp,) = (_options(domain, name) for name in ("machine", "cpu", "smp"))
    assert (machine.values["type"], machine.values["vmport"], machine.values["acpi"]) == ("q35", "off", "off")
    assert cpu.values == {"model": "Nehalem"}
    assert smp.values["cpus"] == "4"


def test_a_snapshot_has_its_domain_within() -> None:
    inner = (DOMAINS / "desktop.xml").read_text()
    snapshot = read_domain(f"<domainsnapshot><name>monday</name>{inner}</domainsnapshot>", "monday.xml")
    assert snapshot.name == "debian12"


def test_a_kernel_of_the_hosts_is_left_out() -> None:
    os_ = "<type machine='pc'>hvm</type><kernel>/boot/k</kernel><initrd>/boot/i</initrd><cmdline>a</cmdline>"
    domain = read_domain(f"<domain type='qemu'><memory>1</memory><os>{os_}</os></domain>", "k.xml")
    assert not {"kernel", "initrd", "append"} & {option.name for option in domain.options}
    assert domain.unread == ()


def test_a_domain_keeps_who_it_is() -> None:
    desktop = read_domain((DOMAINS / "desktop.xml").read_text(), "desktop.xml")
    assert (desktop.name, desktop.binary, desktop.source) == ("debian12", "/usr/bin/qemu-system-x86_64", "desktop.xml")
    tablet = next(option for option in _options(desktop, "device") if option.values["driver"] == "usb-tablet")
    assert tablet.line == 53


def test_many_conventional_devices_get_a_bridge() -> None:
    interfaces = "<interface type='user'><model type='e1000'/></interface>" * 40
    domain = _domain(interfaces, machine="pc")
    assert _devices(domain).count("pci-bridge") == 1
    assert _devices(domain).count("e1000") == 40
    places = [(option.values.get("bus"), option.values.get("addr")) for option in _options(domain, "device")]
    assert len(set(places)) == len(places)


def test_many_usb_devices_get_a_hub() -> None:
    domain = _domain("<input type='tablet' bus='usb'/>" * 9, machine="pc")
    ports = [option.values["port"] for option in _options(domain, "device") if "port" in option.values]
    assert "usb-hub" in _devices(domain)
    assert len(set(ports)) == 11


def test_qemus_own_part_is_known_by_its_namespace() -> None:
    text = (DOMAINS / "extra-arguments.xml").read_text()
    other = text.replace("qemu:", "q:").replace("xmlns:qemu=", "xmlns:q=")
    assert other != text
    assert read_domain(other, "other.xml").options == read_domain(text, "other.xml").options


@pytest.mark.parametrize("bus", ["scsi", "sata", "ide", "fdc"])
def test_an_absurd_number_of_controllers_is_refused(bus: str) -> None:
    address = "<address type='drive' controller='4000000000' bus='0' target='0' unit='0'/>"
    with pytest.raises(UsageError, match=r"an address names the .* controller 4000000000: expected"):
        _domain(f"<disk device='disk'><source file='a'/><target dev='sda' bus='{bus}'/>{address}</disk>")
