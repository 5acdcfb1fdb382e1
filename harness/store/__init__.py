# SPDX-License-Identifier: GPL-2.0-or-later
"""The history: runs, cells and signatures of many nights in one SQLite file or PostgreSQL database."""
