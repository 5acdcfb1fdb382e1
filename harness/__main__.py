# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m harness`` is ``postload``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from harness.cli import main
    except ModuleNotFoundError as error:
        if str(error.name).startswith("harness"):
            raise
        print(f"postload: this Python has no {error.name}; use python3 -m harness.bootstrap", file=sys.stderr)
        sys.exit(3)
    main()
