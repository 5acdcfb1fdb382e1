# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a domain that change nothing that its guest sees, so that nobody is told that they were not read."""

from __future__ import annotations

import re

#: Elements at the top: who the domain is, how much of the host it gets, and what libvirt does when it ends.
_DOMAIN = (
    r"@id|launchSecurity[@/]\w+|metadata|title|description|on_\w+|seclabel|resource|keywrap|perf|idmap|bootloader\w*"
    r"|cputune|blkiotune|memtune|numatune|iothreads|iothreadids|defaultiothread|throttlegroups|currentMemory"
    r"|vcpus|vcpu@(placement|cpuset)|memory@dumpCore|sysinfo|clock|cachetune"
    r"|memoryBacking/(locked|hugepages|access|allocation|source|discard)"
    r"|qemu:(commandline|override|deprecation|capabilities)"
)
#: What starts the guest, and what is said of the CPU for whoever chooses a host.
_START = (
    r"os/(kernel|initrd|cmdline|dtb|shim|firmware|init\w*|type|varstore)|os/(loader|nvram)@\w+|os/nvram/source"
    r"|features/(pae|hap|viridian|privnet|msrs|async-teardown)"
    r"|cpu@(match|check|deprecated_features)|cpu/(vendor|model)|cpu/model@fallback"
)
#: Of devices: what is on the host's side of them.
_DEVICES = (
    r"emulator|lease|graphics|audio|\w+/(alias|boot)|\w+/address|\w+/privateData"
    r"|disk@(rawio|snapshot|sgio|nativeio)|disk/(source|backingStore|mirror|iotune|auth|encryption|transient)"
    r"|disk/(backenddomain|throttlefilters|serial|target@tray)"
    r"|disk/driver(@(name|type|cache|io|copy_on_read|detect_zeroes|iothread|discard\w*|queue_\w+|max_bufsize)|/\w+)"
    r"|interface@(type|trustGuestRxFilters|managed)|interface/(source|target|script|downscript|bandwidth|vlan)"
    r"|interface/(virtualport|filterref|guest|ip|route|link|port|portForward|backend|tune|backenddomain|coalesce)"
    r"|interface/(mac|driver@name|teaming@\w+)"
    r"|(serial|parallel|console|channel|redirdev|smartcard)(@tty|/(source|protocol|log))"
    r"|(serial|parallel|console|channel)/target|rng/backend"
    r"|filesystem(@(fmode|dmode|type)|/(source|binary|driver|idmap|space_\w+))"
    r"|hostdev(@\w+|/(source|driver|teaming|readonly|shareable))|tpm/backend|memballoon/stats|vsock/cid"
    r"|input/source|shmem@(name|role)|memory/source|memory/target/current|crypto@type"
    r"|controller/driver(@iothread|/iothreads)|video/(driver@name|model@(primary|vram\w*|ram|vgamem|heads))"
    r"|video/model/acceleration"
)
_HOST = re.compile(rf"(?:{_DOMAIN}|{_START}|devices/(?:{_DEVICES}))(?![\w-])")


def matters(path: str) -> bool:
    """Whether what stands at a path, as :meth:`harness.adopt.libvirt.tree.Element.unread` has it, could change what
    the guest sees."""
    return not _HOST.match(path)
