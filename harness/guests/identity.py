# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is made of, as its folder and each state pack have it in JSON."""

from __future__ import annotations

from pydantic import ConfigDict

# that of typing tells pydantic too little before Python 3.12
from typing_extensions import TypedDict


class FileIdentity(TypedDict):
    """The content of a file."""

    sha256: str
    size_bytes: int


class PackageIdentity(TypedDict):
    """A Debian package."""

    version: str
    sha256: str


class GuestIdentity(TypedDict, total=False):
    """Hashes, package versions, drivers with the modules that they need, and how the kernel was unpacked."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    schema: str
    name: str
    pvh: bool
    kernel_form: str
    kernel_said: str
    kernel: FileIdentity
    initramfs: FileIdentity
    packages: dict[str, PackageIdentity]
    drivers: dict[str, list[str]]
