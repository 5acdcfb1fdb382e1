# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run comes to: cells, verdicts, signatures, known issues, the document."""
