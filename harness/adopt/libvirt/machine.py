# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine, firmware, CPUs, clock: what a domain has beside its devices and its memory."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.model import Domain, audio_id, said, switch
from harness.adopt.libvirt.tree import Element

#: <hyperv> elements that are one CPU property each, see qemuBuildCpuHypervArgs.
HYPERV = {
    "relaxed": "hv-relaxed",
    "vapic": "hv-vapic",
    "vpindex": "hv-vpindex",
    "runtime": "hv-runtime",
    "synic": "hv-synic",
    "stimer": "hv-stimer",
    "reset": "hv-reset",
    "frequencies": "hv-frequencies",
    "reenlightenment": "hv-reenlightenment",
    "tlbflush": "hv-tlbflush",
    "ipi": "hv-ipi",
    "evmcs": "hv-evmcs",
    "avic": "hv-avic",
    "emsr_bitmap": "hv-emsr-bitmap",
    "xmm_input": "hv-xmm-input",
}
#: What stands within <stimer> and <tlbflush>.
HYPERV_MORE = {
    "stimer/direct": "hv-stimer-direct",
    "tlbflush/direct": "hv-tlbflush-direct",
    "tlbflush/extended": "hv-tlbflush-ext",
}
#: Policies of <feature>; ``optional`` is on where the host has it.
POLICIES = {"force": "on", "require": "on", "optional": "on", "disable": "off", "forbid": "off"}
#: Names of CPU features that QEMU spells otherwise, and those that nobody can ask it for: qemu_capabilities.c.
FEATURES = {"pclmuldq": "pclmulqdq", "ffxsr": "fxsr-opt", "i64": "lm", "xd": "nx"}
NO_FEATURES = ("osxsave", "ospke", "cmt", "mbm_total", "mbm_local", "pconfig")
#: Where <sysinfo> says what, in tables of SMBIOS.
SMBIOS_TABLES = {"bios": "0", "system": "1", "baseBoard": "2", "chassis": "3"}
#: Types of <launchSecurity>.
SECURITY = {"sev": "sev-guest", "sev-snp": "sev-snp-guest", "tdx": "tdx-guest"}


def options(domain: Domain) -> Iterator[SaidOption]:
    """All of them, in libvirt's order."""
    yield from _firmware(domain)
    yield _machine(domain)
    yield from _accelerator(domain)
    yield from _tseg(domain)
    yield from _cpu(domain)
    yield from _secure_flash(domain)
    yield _smp(domain)
    yield from _identity(domain)
    yield SaidOption(name="nodefaults", values={}, line=domain.root.line)
    yield from _clock(domain)
    yield from _sleep(domain)
    yield from _boot(domain)
    yield from _vmcoreinfo(domain)
    yield from _generation(domain)
    yield from _security(domain)


def _feature(domain: Domain, name: str) -> str | None:
    """``on`` or ``off`` as <features> has it, None where it says nothing; without a state it is on."""
    if not domain.root.has(f"features/{name}"):
        return None
    state = domain.root.at(f"features/{name}").yes("state")
    return "off" if state is False else "on"


def _machine(domain: Domain) -> SaidOption:
    """qemuBuildMachineCommandLine; ``acpi`` and ``hpet`` are options of their own in older libvirts."""
    os_ = domain.root.at("os")
    values: dict[str, Value] = {
        "type": domain.machine,
        "usb": "off",
        "vmport": _feature(domain, "vmport"),
        "smm": _feature(domain, "smm"),
        "kernel-irqchip": {"qemu": "split", "kvm": "on"}.get(domain.root.at("features/ioapic").get("driver")),
        "gic-version": _interrupt_controller(domain),
        "ras": _feature(domain, "ras"),
        "i8042": _feature(domain, "ps2"),
        "acpi": None if domain.root.has("features/acpi") else "off",
        "hpet": switch(_timer(domain, "hpet").yes("present")),
        "mem-merge": "off" if domain.root.has("memoryBacking/nosharepages") else None,
        "nvdimm": "on" if any(memory.get("model") == "nvdimm" for memory in domain.devices("memory")) else None,
        "hmat": "on" if has_hmat(domain) else None,
        "iommu": _machine_iommu(domain),
        "graphics": switch(False if os_.at("bios").yes("useserial") else None),
        "memory-backend": None if domain.root.has("cpu/numa") else ram_id(domain),
        "confidential-guest-support": "lsec0" if domain.root.has("launchSecurity") else None,
        "pcspk-audiodev": next(map(audio_id, _speakers(domain)), None),
        **_pflash(domain),
    }
    return said("machine", os_, values)


def _interrupt_controller(domain: Domain) -> str | None:
    """libvirt takes the newest that KVM has, which is 3 on every server, and 2 without KVM."""
    if not domain.virt or not domain.arch.startswith(("arm", "aarch64")):
        return None
    return domain.root.at("features/gic").get("version", "3" if domain.root.get("type") == "kvm" else "2")


def _speakers(domain: Domain) -> list[Element]:
    return [sound for sound in domain.devices("sound") if sound.get("model") == "pcspk"]


def has_hmat(domain: Domain) -> bool:
    """Whether a guest is told how far its memory is: ways between nodes, or caches of them."""
    numa = domain.root.at("cpu/numa")
    return numa.has("interconnects") or any(cell.has("cache") for cell in numa.all("cell"))


def _machine_iommu(domain: Domain) -> str | None:
    models = [iommu.get("model") for iommu in domain.devices("iommu")]
    return "smmuv3" if "smmuv3" in models else None


def ram_id(domain: Domain) -> str:
    """What QEMU calls the memory of a machine: the property ``default-ram-id`` of its class."""
    if domain.virt:
        return "mach-virt.ram"
    return "microvm.ram" if domain.machine == "microvm" else "pc.ram"


def _timer(domain: Domain, name: str) -> Element:
    clock = domain.root.at("clock")
    timers = [timer for timer in clock.all("timer") if timer.get("name") == name]
    return next(iter(timers), Element("timer", clock.source, clock.line))


def _pflash(domain: Domain) -> dict[str, Value]:
    nodes = [f"libvirt-pflash{unit}-format" for unit, _, _ in _flashes(domain)]
    return {f"pflash{unit}": node for unit, node in enumerate(nodes)}


def _flashes(domain: Domain) -> Iterator[tuple[int, Element, bool]]:
    """Flash chips: unit, what stands in the domain for it, and whether it is read-only."""
    os_ = domain.root.at("os")
    loader = os_.first("loader")
    firmware = os_.get("firmware") == "efi"
    if (loader is None or loader.get("type") != "pflash") and not firmware:
        return
    readonly = loader is None or loader.yes("readonly") is True
    yield 0, loader or os_, readonly
    if (readonly and not (loader and loader.yes("stateless"))) or os_.has("nvram"):
        yield 1, os_.first("nvram") or os_, False


def _firmware(domain: Domain) -> Iterator[SaidOption]:
    """Flash with firmware, or the file for -bios."""
    loader = domain.root.at("os/loader")
    if loader.get("type", "rom") == "rom" and loader.words():
        yield said("bios", loader, {"value": loader.words()})
    for unit, flash, readonly in _flashes(domain):
        name = f"libvirt-pflash{unit}"
        path = flash.words() or flash.at("source").get("file") if flash.tag != "os" else ""
        yield said("blockdev", flash, {"driver": "file", "filename": path, "node-name": f"{name}-storage"})
        format_ = {"driver": flash.get("format", "raw") if flash.tag != "os" else "raw", "file": f"{name}-storage"}
        yield said("blockdev", flash, {"node-name": f"{name}-format", "read-only": readonly, **format_})


def _secure_flash(domain: Domain) -> Iterator[SaidOption]:
    loader = domain.root.at("os/loader")
    if loader.yes("secure"):
        yield _global(loader, "cfi.pflash01", "secure", "on")


def _global(element: Element, driver: str, name: str, value: str) -> SaidOption:
    return said("global", element, {"driver": driver, "property": name, "value": value})


def _accelerator(domain: Domain) -> Iterator[SaidOption]:
    type_ = domain.root.get("type")
    kvm = domain.root.at("features/kvm/dirty-ring")
    size = kvm.get("size") if kvm.yes("state") else ""
    cache = domain.root.at("features/tcg/tb-cache")
    translated = str(cache.size() >> 20) if cache.words() else None
    accelerator = {"kvm": "kvm", "qemu": "tcg"}.get(type_, type_)
    values = {"accel": accelerator, "dirty-ring-size": size or None, "tb-size": translated}
    yield said("accel", domain.root, values)


def _tseg(domain: Domain) -> Iterator[SaidOption]:
    tseg = domain.root.at("features/smm/tseg")
    if tseg.words():
        yield _global(tseg, "mch", "extended-tseg-mbytes", str(tseg.size("MiB") >> 20))


def _cpu(domain: Domain) -> Iterator[SaidOption]:
    """qemuBuildCpuCommandLine. A domain that names no CPU gets the machine's own."""
    cpu = domain.root.at("cpu")
    model = _cpu_model(domain, cpu)
    values = dict(_cpu_values(domain, cpu))
    tcg_arm = domain.virt and domain.root.get("type") == "qemu"
    usual = (
        "qemu32" if domain.emulator.endswith("i386") else "qemu64" if domain.x86 else "cortex-a15" if tcg_arm else ""
    )
    if model or values or usual:
        yield said("cpu", cpu, {"model": model or usual or "max", **values})


def _cpu_model(domain: Domain, cpu: Element) -> str:
    """``host-model`` is the host's CPU, which libvirt names when it starts the domain and a file does not."""
    named = cpu.at("model").words()
    modes = {"host-passthrough": "host", "host-model": "host", "maximum": "max"}
    return modes.get(cpu.get("mode", "custom"), named)


def _cpu_values(domain: Domain, cpu: Element) -> Iterator[tuple[str, str]]:
    mode = cpu.get("mode", "custom")
    migratable = cpu.get("migratable", "on" if mode == "host-passthrough" and domain.x86 else "")
    if mode in ("host-passthrough", "maximum") and migratable:
        yield "migratable", migratable
    if vendor := cpu.at("model").get("vendor_id"):
        yield "vendor", vendor
    for feature in cpu.all("feature"):
        name, policy = feature.get("name"), _policy(feature)
        if name not in NO_FEATURES:
            yield FEATURES.get(name, name.replace("_", "-") if domain.x86 else name), policy
    yield from _timers_of_cpu(domain)
    yield from _features_of_cpu(domain)
    yield from _cache(cpu)
    yield from _address_bits(cpu)


def _policy(feature: Element) -> str:
    return POLICIES[feature.choice("policy", POLICIES, "require")]


def _timers_of_cpu(domain: Domain) -> Iterator[tuple[str, str]]:
    for name, key in (("kvmclock", "kvmclock"), ("hypervclock", "hv-time")):
        if (present := _timer(domain, name).yes("present")) is not None and (present or name == "kvmclock"):
            yield key, "on" if present else "off"
    if frequency := _timer(domain, "tsc").get("frequency"):
        yield "tsc-frequency", frequency
    if (policy := _timer(domain, "armvtimer").get("tickpolicy")) and domain.virt:
        yield "kvm-no-adjvtime", "on" if policy == "discard" else "off"


def _features_of_cpu(domain: Domain) -> Iterator[tuple[str, str]]:
    features = domain.root.at("features")
    if (eoi := features.at("apic").yes("eoi")) is not None:
        yield "kvm-pv-eoi", "on" if eoi else "off"
    if (unhalt := _feature(domain, "pvspinlock")) is not None:
        yield "kvm-pv-unhalt", unhalt
    yield from _hyperv(features.at("hyperv"))
    if any(panic.get("model") == "hyperv" for panic in domain.devices("panic")):
        yield "hv-crash", "on"
    yield from _kvm(features.at("kvm"))
    if (pmu := _feature(domain, "pmu")) is not None:
        yield "pmu", pmu


def _hyperv(hyperv: Element) -> Iterator[tuple[str, str]]:
    if hyperv.get("mode") == "passthrough":
        yield "hv-passthrough", "on"
    for name, key in {**HYPERV, **HYPERV_MORE}.items():
        if hyperv.at(name).yes("state") and hyperv.at(name.partition("/")[0]).yes("state"):
            yield key, "on"
    if hyperv.at("spinlocks").yes("state"):
        retries = hyperv.at("spinlocks").number("retries")
        yield "hv-spinlocks", "0x1fff" if retries is None else f"{retries:#x}"
    if hyperv.at("vendor_id").yes("state"):
        yield "hv-vendor-id", hyperv.at("vendor_id").get("value")


def _kvm(kvm: Element) -> Iterator[tuple[str, str]]:
    if kvm.at("hidden").yes("state"):
        yield "kvm", "off"
    for name in ("hint-dedicated", "poll-control"):
        if kvm.at(name).yes("state"):
            yield f"kvm-{name}", "on"
    if kvm.at("pv-ipi").yes("state") is False:
        yield "kvm-pv-ipi", "off"


def _cache(cpu: Element) -> Iterator[tuple[str, str]]:
    mode = cpu.at("cache").get("mode")
    level = cpu.at("cache").number("level")
    if mode in ("emulate", "disable") and cpu.get("mode") == "host-passthrough":
        yield "host-cache-info", "off"
    if mode == "emulate" and level == 3:
        yield "l3-cache", "on"
    elif mode == "passthrough":
        yield from (("host-cache-info", "on"), ("l3-cache", "off"))
    elif mode == "disable":
        yield "l3-cache", "off"


def _address_bits(cpu: Element) -> Iterator[tuple[str, str]]:
    physical = cpu.at("maxphysaddr")
    if physical.get("mode") == "passthrough":
        yield "host-phys-bits", "on"
        if limit := physical.get("limit"):
            yield "host-phys-bits-limit", limit
    elif physical.get("mode") == "emulate":
        yield ("phys-bits", bits) if (bits := physical.get("bits")) else ("host-phys-bits", "off")


def _smp(domain: Domain) -> SaidOption:
    """qemuBuildSmpCommandLine: without a topology each CPU is a socket."""
    vcpu = domain.root.at("vcpu")
    most = int(vcpu.words() or "1") if (vcpu.words() or "1").isdecimal() else _no_number(vcpu)
    now = vcpu.number("current") or most
    topology = domain.root.at("cpu/topology")
    values: dict[str, Value] = {"cpus": str(now), "maxcpus": str(most) if now != most else None}
    if not domain.root.has("cpu/topology"):
        return said("smp", vcpu, {**values, "sockets": str(most), "cores": "1", "threads": "1"})
    parts: dict[str, Value] = {"dies": "1"} if domain.x86 else {}
    parts |= {
        key: topology.get(key) for key in ("sockets", "dies", "clusters", "cores", "threads") if topology.get(key)
    }
    return said("smp", topology, {**values, **parts})


def _no_number(element: Element) -> int:
    raise element.wrong(f"{element.words()!r}: expected a number")


def _identity(domain: Domain) -> Iterator[SaidOption]:
    """UUID and SMBIOS, which the guest can read."""
    uuid = domain.root.at("uuid")
    if uuid.words():
        yield said("uuid", uuid, {"value": uuid.words()})
    for sysinfo in domain.root.all("sysinfo"):
        if sysinfo.get("type") == "fwcfg":
            yield from _fw_cfg(sysinfo)
        elif domain.root.at("os/smbios").get("mode") == "sysinfo":
            for table in sysinfo.children:
                yield from _smbios(sysinfo, table)
    for table in domain.root.at("os/acpi").all("table"):
        yield said("acpitable", table, {"sig": table.get("type").upper() or None, "file": table.words()})


def _fw_cfg(sysinfo: Element) -> Iterator[SaidOption]:
    for entry in sysinfo.all("entry"):
        values = {"name": entry.get("name"), "file": entry.get("file") or None, "string": entry.words() or None}
        yield said("fw_cfg", entry, values)


def _smbios(sysinfo: Element, table: Element) -> Iterator[SaidOption]:
    sysinfo.all(table.tag)
    entries = {entry.get("name"): entry.words() for entry in table.all("entry")}
    if table.tag in SMBIOS_TABLES:
        yield said("smbios", table, {"type": SMBIOS_TABLES[table.tag], **entries})
    elif table.tag == "oemStrings":
        strings = [entry.words() for entry in table.all("entry")]
        yield said("smbios", table, {"type": "11", "value": strings[0] if len(strings) == 1 else strings})


def _clock(domain: Domain) -> Iterator[SaidOption]:
    """qemuBuildClockArgStr and what <timer> says; ``variable`` starts where the host's clock stands."""
    clock = domain.root.at("clock")
    offset = clock.get("offset", "utc")
    base = {"localtime": "localtime", "timezone": "localtime", "absolute": clock.get("start")}.get(offset, "utc")
    rtc = _timer(domain, "rtc")
    track = {"guest": "vm", "realtime": "rt", "wall": "host"}.get(rtc.get("track"))
    slew = "slew" if rtc.get("tickpolicy") == "catchup" else None
    yield said("rtc", clock, {"base": base, "clock": track, "driftfix": slew})
    pit = _timer(domain, "pit")
    if (policy := pit.get("tickpolicy")) in ("delay", "discard"):
        yield _global(pit, "kvm-pit", "lost_tick_policy", policy)


def _sleep(domain: Domain) -> Iterator[SaidOption]:
    bridge = "ICH9-LPC" if domain.q35 else "PIIX4_PM"
    for name, key in (("suspend-to-mem", "disable_s3"), ("suspend-to-disk", "disable_s4")):
        element = domain.root.at(f"pm/{name}")
        if (enabled := element.yes("enabled")) is not None and domain.x86:
            yield _global(element, bridge, key, "0" if enabled else "1")


def _boot(domain: Domain) -> Iterator[SaidOption]:
    os_ = domain.root.at("os")
    menu, bios = os_.at("bootmenu"), os_.at("bios")
    values = {
        "menu": switch(menu.yes("enable")),
        "reboot-timeout": bios.get("rebootTimeout") or None,
        "splash-time": menu.get("timeout") or None,
        "strict": "on",
    }
    yield said("boot", os_, values)


def _vmcoreinfo(domain: Domain) -> Iterator[SaidOption]:
    if _feature(domain, "vmcoreinfo") == "on":
        yield said("device", domain.root.at("features/vmcoreinfo"), {"driver": "vmcoreinfo"})


def _generation(domain: Domain) -> Iterator[SaidOption]:
    """A guest that is told when it is a copy. libvirt makes up an id where none is said."""
    for genid in domain.root.all("genid"):
        yield said("device", genid, {"driver": "vmgenid", "guid": genid.words() or "auto", "id": "vmgenid0"})


def _security(domain: Domain) -> Iterator[SaidOption]:
    """Memory that the host cannot read: nothing that could be tried elsewhere."""
    for security in domain.root.all("launchSecurity"):
        if (type_ := security.get("type")) in SECURITY:
            yield said("object", security, {"qom-type": SECURITY[type_], "id": "lsec0"})
        else:
            security.pass_over()
