# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a domain that change nothing that its guest sees, so that nobody is told that they were not read."""

from __future__ import annotations

import re

#: Paths, as :meth:`harness.adopt.libvirt.tree.Element.unread` has them.
ON_THE_HOST = (
    # who the domain is, and what libvirt does when it stops
    r"(metadata|title|description|genid|on_\w+|id|seclabel|resource|keywrap|@id)\b",
    # where its threads and its memory are on the host, and how much of the host they get
    r"(cputune|blkiotune|memtune|numatune|iothreads|iothreadids|currentMemory|perf|idmap|bandwidth)\b",
    r"memoryBacking/(locked|hugepages|access|allocation|source|discard)",
    r"vcpu@(placement|cpuset)",
    r"sysinfo",
    # what starts the guest: a kernel of its own is not taken over
    r"os/(kernel|initrd|cmdline|dtb|acpi|shim|bootmenu|firmware|init\w*|loader@\w+|nvram@\w+|type@\w+)",
    r"features/(pae|hap|viridian|privnet|msrs|async-teardown|capabilities|apic|acpi|htm|kvm|gic|smm|ps2)\b",
    r"cpu@(match|check|deprecated_features)|cpu/(vendor|model@fallback)|clock",
    # how an image is read, and where from
    r"devices/(emulator|lease)\b",
    r"devices/disk@(rawio|snapshot|sgio|nativeio)",
    r"devices/disk/(source|backingStore|mirror|iotune|auth|encryption|transient|backenddomain|throttlefilters|serial)\b",
    r"devices/disk/(driver|target)\b",
    # how the host reaches the guest
    r"devices/interface@(type|trustGuestRxFilters)|devices/interface/(source|target|script|downscript|bandwidth|vlan)\b",
    r"devices/interface/(virtualport|filterref|guest|ip|route|link|port|portForward|backend|tune|backenddomain)\b",
    r"devices/interface/(driver@\w+|actual|coalesce)",
    r"devices/(graphics|audio)\b",
    r"devices/(serial|parallel|console|channel|redirdev|smartcard|rng)\b.*/(source|protocol|log|target)\b",
    r"devices/(serial|parallel|console|channel)@tty",
    r"devices/filesystem\b.*(source|binary|driver|fmode|dmode|idmap|space_\w+)",
    r"devices/hostdev@\w+|devices/hostdev/(source|driver|teaming)\b",
    r"devices/tpm/backend\b|devices/memballoon/stats|devices/memballoon@\w+|devices/vsock/cid@auto",
    r"devices/\w+/(alias|address|boot)\b",
    r"devices/input/(source|driver)\b|devices/(sound|video)/(driver|audio)\b|devices/video/model@\w+",
    r"devices/shmem@name|devices/shmem@role|devices/memory/source\b|devices/crypto@type|devices/watchdog@action",
    r"devices/controller/(driver@iothread|driver/iothreads|target|model)",
    r"qemu:(commandline|override|deprecation|capabilities)\b",
)
_HOST = re.compile("|".join(ON_THE_HOST))


def matters(path: str) -> bool:
    """Whether what stands at a path could change what the guest sees."""
    return not _HOST.match(path)
