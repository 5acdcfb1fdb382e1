# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of ``postload``, a module for each group of them; :mod:`harness.cli` puts them together."""
