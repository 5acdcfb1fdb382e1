# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload redact``: a state pack that can be given away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.adopt.redact import Redaction, redact_pack
from harness.commands.output import print_json
from harness.errors import UsageError
from harness.packs.export import new_pack
from harness.packs.pack import StatePack
from harness.report.console import SafeConsole
from harness.report.redact import print_redaction, redaction_document


def redact(given: dict[str, Any]) -> int:
    """Write another pack of one phase, and say what is left of it."""
    with StatePack(given["pack"]) as pack:
        tell(redacted(pack, given["out"], given["names"], given["phase"]), given["out"], given["as_json"])
    return 0


def redacted(pack: StatePack, out: Path, names: Sequence[str], phase: str | None = None) -> Redaction:
    """Write it.

    :param names: that name the guest; what the pack calls the VM is one of them
    :param phase: the pack's last one where none is given
    """
    if phase is not None and phase not in pack.recordings:
        raise UsageError(f"{pack.source} has no phase {phase!r}: expected one of {', '.join(pack.phases)}")
    origin = pack.manifest.origin
    own = () if origin is None or not origin.name else (origin.name,)
    with new_pack(out) as folder:
        return redact_pack(pack, phase or pack.phases[-1], folder, (*own, *names))


def tell(redaction: Redaction, out: Path, as_json: bool) -> None:
    """Print what became of it."""
    if as_json:
        print_json(redaction_document(redaction, out))
    else:
        print_redaction(redaction, SafeConsole())
