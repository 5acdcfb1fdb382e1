# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions on which maintainers disagree, answered with numbers from this host's QEMU."""
