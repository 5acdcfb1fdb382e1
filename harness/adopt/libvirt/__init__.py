# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's domains in terms of QEMU's options: what :mod:`harness.adopt.domain` is made of, by family of elements.

Each module but the first three turns elements into options as libvirt's ``src/qemu/qemu_command.c`` does, and takes a
domain in which nothing is left out: :mod:`completion` adds what libvirt adds when a domain is defined.
"""
