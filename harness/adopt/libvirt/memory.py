# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory: the machine's own, that of NUMA nodes, and modules."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.machine import has_hmat, ram_id
from harness.adopt.libvirt.model import Domain, alias, device, said
from harness.adopt.libvirt.tree import UNITS, Element

#: MAX_NODES of QEMU.
MOST_NODES = 128
#: Types of memory modules, and how their backends' ids begin.
MODULES = {"dimm": "pc-dimm", "nvdimm": "nvdimm", "virtio-mem": "virtio-mem-pci", "virtio-pmem": "virtio-pmem-pci"}
BACKENDS = {"file": "memory-backend-file", "memfd": "memory-backend-memfd", "anonymous": "memory-backend-ram"}


def options(domain: Domain) -> Iterator[SaidOption]:
    """-m, -numa and their backends."""
    yield _size(domain)
    if domain.root.has("cpu/numa"):
        yield from _nodes(domain)
    else:
        yield _backend(domain, domain.root.at("memory"), ram_id(domain), _own_memory(domain))


def modules(domain: Domain) -> Iterator[SaidOption]:
    """Memory that is plugged in: devices, some of them on PCI."""
    for memory in domain.devices("memory"):
        yield from _module(domain, memory)


def _size(domain: Domain) -> SaidOption:
    """qemuBuildMemCommandLine: modules are part of <memory>, and no part of -m."""
    memory, most = domain.root.at("memory"), domain.root.at("maxMemory")
    if domain.root.has("memory"):
        memory.size()
    if not most.words():
        return said("m", memory, {"size": str(_own_memory(domain) >> 20)})
    room = {"slots": most.get("slots") or None, "maxmem": f"{most.size() >> 10}k"}
    return said("m", memory, {"size": f"{_own_memory(domain) >> 10}k", **room})


def _own_memory(domain: Domain) -> int:
    """Bytes of the machine without its modules."""
    if domain.root.has("cpu/numa"):
        return sum(_cell_size(cell) for cell in domain.root.at("cpu/numa").all("cell"))
    modules = sum(memory.at("target/size").size() for memory in domain.devices("memory"))
    return _whole_mib(max(domain.root.at("memory").size() - modules, 1))


def _whole_mib(size: int) -> int:
    """qemuDomainGetMemorySizeAlignment."""
    return -(-size >> 20) << 20


def _cell_size(cell: Element) -> int:
    text = Element("cell", cell.source, cell.line, {"unit": cell.get("unit", "KiB")}, text=cell.get("memory", "0"))
    return _whole_mib(text.size())


def _backend(
    domain: Domain, element: Element, id_: str, size: int, *, access: str = "", discard: bool = False, **more: Value
) -> SaidOption:
    """An object that has the memory; of which kind, says <memoryBacking>."""
    backing = domain.root.at("memoryBacking")
    kind = "file" if more.get("mem-path") else backing.at("source").choice("type", BACKENDS, "anonymous")
    access = access or backing.at("access").get("mode")
    huge = backing.has("hugepages") and kind == "anonymous"
    kind = "file" if access and kind == "anonymous" else kind
    values: dict[str, Value] = {
        "qom-type": BACKENDS["file" if huge else kind],
        "id": id_,
        "mem-path": "/dev/hugepages" if huge else f"ram/{id_}" if kind == "file" else None,
        "share": {"shared": True, "private": False}.get(access),
        "prealloc": True if huge or backing.at("allocation").get("mode") == "immediate" else None,
        "discard-data": True if kind == "file" and (discard or backing.has("discard")) else None,
        "size": size,
        **more,
    }
    return said("object", element, values)


def _nodes(domain: Domain) -> Iterator[SaidOption]:
    """qemuBuildNumaCommandLine."""
    cells = domain.root.at("cpu/numa").all("cell")
    if len(cells) > MOST_NODES:
        raise cells[MOST_NODES].wrong(f"more than {MOST_NODES} nodes, which is what QEMU has room for")
    for index, cell in enumerate(cells):
        node = str(cell.number("id") if cell.get("id") else index)
        backend = f"ram-node{node}"
        access, discard = cell.get("memAccess"), bool(cell.yes("discard"))
        yield _backend(domain, cell, backend, _cell_size(cell), access=access, discard=discard)
        values: dict[str, Value] = {"type": "node", "nodeid": node, "cpus": _ranges(cell), "memdev": backend}
        yield said("numa", cell, {**values, "initiator": _initiator(domain, cell, node)})
    yield from _distances(cells)
    yield from _hmat(domain.root.at("cpu/numa"))


def _initiator(domain: Domain, cell: Element, node: str) -> str | None:
    """The node whose CPUs are nearest to its memory, where the domain says how near they are."""
    if not has_hmat(domain):
        return None
    if cell.get("cpus"):
        return node
    ways = domain.root.at("cpu/numa/interconnects").all("latency")
    near = [way for way in ways if way.get("target") == node and not way.get("cache")]
    return min(near, key=lambda way: way.number("value") or 0).get("initiator") if near else "0"


def _hmat(numa: Element) -> Iterator[SaidOption]:
    """How far memory is, and the caches on the way: qemuBuildNumaHMATCommandLine."""
    for way in numa.at("interconnects").children:
        numa.at("interconnects").all(way.tag)
        level = way.number("cache") or 0
        values: dict[str, Value] = {
            "type": "hmat-lb",
            "initiator": way.get("initiator"),
            "target": way.get("target"),
            "hierarchy": ("memory", "first-level", "second-level", "third-level")[min(max(level, 0), 3)],
            "data-type": f"{way.get('type')}-{way.tag}",
        }
        amount = way.get("value")
        values[way.tag] = amount if way.tag == "latency" else f"{amount}{way.get('unit', 'KiB')[0].upper()}"
        yield said("numa", way, values)
    for cell in numa.all("cell"):
        for cache in cell.all("cache"):
            yield _hmat_cache(cell, cache)


def _hmat_cache(cell: Element, cache: Element) -> SaidOption:
    line = cache.at("line")
    policies = {"none": "none", "writeback": "write-back", "writethrough": "write-through"}
    associativity = {"none": "none", "direct": "direct", "full": "complex"}
    size = cache.at("size")
    values: dict[str, Value] = {
        "type": "hmat-cache",
        "node-id": cell.get("id"),
        "size": f"{(size.number('value') or 0) * UNITS.get(size.get('unit', 'KiB').lower(), 1024) >> 10}K",
        "level": cache.get("level"),
        "associativity": associativity.get(cache.get("associativity")),
        "policy": policies.get(cache.get("policy")),
        "line": str((line.number("value") or 0) * UNITS.get(line.get("unit", "B").lower(), 1)),
    }
    return said("numa", cache, values)


def _ranges(cell: Element) -> Value:
    """Its CPUs as QEMU is told: ranges of them that stand in a row."""
    numbers = sorted(_cpus(cell))
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    ranges = [f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True)]
    return ranges or None


def _cpus(cell: Element) -> set[int]:
    cpus: set[int] = set()
    for part in filter(None, cell.get("cpus").split(",")):
        first, _, last = part.strip().lstrip("^").partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) > 4096:
            raise cell.wrong(f"cpus={cell.get('cpus')!r}: expected numbers and ranges such as 0-3,7")
        part_cpus = set(range(int(first), int(last or first) + 1))
        cpus = cpus - part_cpus if part.strip().startswith("^") else cpus | part_cpus
    return cpus


def _distances(cells: list[Element]) -> Iterator[SaidOption]:
    """How far nodes are from each other, of all pairs as soon as one says it: QEMU's own figures for the rest."""
    nodes = [cell.get("id") or str(index) for index, cell in enumerate(cells)]
    said_ = {
        (node, sibling.get("id")): sibling.get("value")
        for node, cell in zip(nodes, cells, strict=True)
        for sibling in cell.at("distances").all("sibling")
    }
    for node, cell in zip(nodes, cells, strict=True) if said_ else ():
        for other in nodes:
            usual = said_.get((other, node), "10" if node == other else "20")
            values = {"src": node, "dst": other, "val": said_.get((node, other), usual)}
            yield said("numa", cell, {"type": "dist", **values})


def _module(domain: Domain, memory: Element) -> Iterator[SaidOption]:
    """qemuBuildMemoryDeviceStr."""
    if (model := memory.get("model")) not in MODULES:
        memory.pass_over()
        return
    target, backend = memory.at("target"), f"mem{alias(memory)}"
    path = memory.at("source/path").words() or memory.at("path").words()
    cells = [cell.get("memAccess") for cell in domain.root.at("cpu/numa").all("cell")]
    node = target.at("node").words()
    access = memory.get("access") or (cells[int(node)] if node.isdecimal() and int(node) < len(cells) else "")
    more: dict[str, Value] = {"mem-path": path} if path else {}
    if model == "virtio-mem":
        more["reserve"] = False
    if model in ("nvdimm", "virtio-pmem"):
        access = access or "shared"
    size, discard = target.at("size").size(), bool(memory.yes("discard"))
    size = -(-size >> 21) << 21  # qemuDomainGetMemoryModuleSizeAlignment
    yield _backend(domain, memory, backend, size, access=access, discard=discard, **more)
    yield device(domain, memory, MODULES[model], {**_module_values(target), "memdev": backend})


def _module_values(target: Element) -> dict[str, Value]:
    """What a module has beside its memory. Sizes are bytes."""
    node = target.at("node").words()
    sizes = {"label-size": "label/size", "block-size": "block", "requested-size": "requested"}
    return {
        "node": int(node) if node.isdecimal() else None,
        **{key: target.at(path).size() if target.at(path).words() else None for key, path in sizes.items()},
        "unarmed": True if target.has("readonly") else None,
        "uuid": target.at("uuid").words() or None,
        "dynamic-memslots": target.yes("dynamicMemslots"),
        "memaddr": target.at("address").number("base"),
    }
