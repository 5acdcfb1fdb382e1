# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's migration stream: reader, writer, RAM image and the vmdesc that names every byte.

Nothing here does I/O beyond being handed bytes, except :func:`harness.stream.reader.open_stream`, which
maps a file.
"""
