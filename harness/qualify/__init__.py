# SPDX-License-Identifier: GPL-2.0-or-later
"""Will the guests of one host load on another: reasons in the words of the cause."""
