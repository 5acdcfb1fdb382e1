# SPDX-License-Identifier: GPL-2.0-or-later
"""Where commands print: what was asked for goes to stdout, all else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from harness.report.console import SafeConsole

#: Progress, messages and errors.
err = SafeConsole(stderr=True)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
