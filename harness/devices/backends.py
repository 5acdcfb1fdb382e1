# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind a device on the host's side: typed, so that no file name and no option of a user's is in it.

A kind that is added here is rendered in :mod:`harness.guests.machine`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: An id of a device, bus or backend, as QEMU takes one (``id_wellformed``, ``util/id.c``).
IDENT: Final = r"[A-Za-z][A-Za-z0-9._-]{0,63}"
Ident = Annotated[str, Field(pattern=rf"^{IDENT}$")]


class Model(BaseModel):
    """A part of a plan: nothing in it may be unknown to whoever runs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Disk(Model):
    """A disk that is empty when the guest first meets it.

    :param medium: ``file``: a sparse scratch image; ``null``: nothing is kept, reads give zeros
    :param sector_bytes: logical and physical block size that its device shows
    """

    kind: Literal["disk"] = "disk"
    size_bytes: Annotated[int, Field(ge=512, le=1 << 50)]
    medium: Literal["file", "null"] = "file"
    sector_bytes: Literal[512, 4096] = 512


class Netdev(Model):
    """A network: QEMU's own, which answers pings by itself, or a tap device of the host.

    :param restrict: nothing of the host is to be reached through it
    :param interface: the tap device, which must be there; a pack that travels cannot have one
    """

    kind: Literal["netdev"] = "netdev"
    type: Literal["user", "tap"] = "user"
    restrict: Literal[True] = True
    interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")] | None = None

    @model_validator(mode="after")
    def _tap_has_a_name(self) -> Netdev:
        if (self.type == "tap") != (self.interface is not None):
            raise ValueError("expected 'interface' with type tap, and with no other")
        return self


class LoneTap(Model):
    """A tap device in a network of its own, with nobody on it: a card has the offloads of a tap behind it, and as many
    queues (:mod:`harness.qemu.lonetap`)."""

    kind: Literal["lone-tap"] = "lone-tap"
    queues: Annotated[int, Field(ge=1, le=64)] = 1


class Chardev(Model):
    """The far end of a serial line: nobody is there, or what was written last is kept (``ringbuf``)."""

    kind: Literal["chardev"] = "chardev"
    type: Literal["null", "ringbuf"] = "null"


class Audiodev(Model):
    """Sound that nobody hears: samples are taken at their rate."""

    kind: Literal["audiodev"] = "audiodev"
    type: Literal["none"] = "none"


class Memdev(Model):
    """Memory of QEMU's own, without a file; it is part of the saved RAM.

    :param share: mapped as shared memory, which some devices want
    """

    kind: Literal["memdev"] = "memdev"
    size_bytes: Annotated[int, Field(ge=4096, le=1 << 40)]
    share: bool = False


class Fsdev(Model):
    """A file system that QEMU makes up itself (``hw/9pfs/9p-synth.c``): nothing of the host is in it."""

    kind: Literal["fsdev"] = "fsdev"
    type: Literal["synth"] = "synth"


class Cryptodev(Model):
    """Ciphers that QEMU computes itself."""

    kind: Literal["cryptodev"] = "cryptodev"
    type: Literal["builtin"] = "builtin"


class Canbus(Model):
    """A CAN bus with nothing of the host on it."""

    kind: Literal["canbus"] = "canbus"


class Tpm(Model):
    """A TPM 2.0 with nothing in it, which a program beside QEMU emulates (:mod:`harness.qemu.swtpm`)."""

    kind: Literal["tpm"] = "tpm"


class VhostDisk(Model):
    """An empty disk whose requests a program beside QEMU carries out (:mod:`harness.qemu.vhostdisk`): the guest shares
    its memory with that."""

    kind: Literal["vhost-disk"] = "vhost-disk"
    size_bytes: Annotated[int, Field(ge=512, le=1 << 50)]


class Ivshmem(Model):
    """Memory from an ivshmem server that has no other client (:mod:`harness.qemu.ivshmem`)."""

    kind: Literal["ivshmem"] = "ivshmem"
    size_bytes: Annotated[int, Field(ge=4096, le=1 << 40)]


Backend = Annotated[
    Disk | Netdev | LoneTap | Chardev | Audiodev | Memdev | Fsdev | Cryptodev | Canbus | Tpm | VhostDisk | Ivshmem,
    Field(discriminator="kind"),
]


def shares_memory(backends: Iterable[Backend]) -> bool:
    """Whether a program beside QEMU has to have the guest's memory too for one of them."""
    return any(isinstance(backend, VhostDisk) for backend in backends)
