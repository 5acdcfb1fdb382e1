# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence -> verdict, class and blame. Pure where they can be."""
