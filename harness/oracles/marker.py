# SPDX-License-Identifier: GPL-2.0-or-later
"""Did the load break, or the start of the guest behind it? Both come between VMSTATE_RECEIVED and VMSTATE_LOADED.

The session is repeated, and in the buffer that broke a section that no QEMU knows stands last. A QEMU that gets to
it refuses it by name and starts no guest: all sections before it were loaded. One that breaks as before never got
there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from harness.engines.colo import Session
from harness.oracles.load import judge
from harness.results.outcome import Moment
from harness.results.verdict import Verdict
from harness.stream.model import Section
from harness.stream.wire import SectionType

#: An idstr that nobody registers.
MARKER = "postload/end-of-load"
_SECTION_ID = 0x7FFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked(Session):
    """A session with the marker behind the sections of one checkpoint.

    :param at: that checkpoint, counted from 0
    """

    at: int

    def _last(self, number: int) -> list[bytes]:
        return [marker()] if number == self.at else []


def moment_of(session: Session, checkpoint: int, verdict: Verdict) -> Moment | None:
    """Repeat a session that broke, with the marker in the checkpoint that did it.

    :param checkpoint: that one, counted from 0: as many as were acknowledged before it
    :param verdict: what the session came to; None comes back when it comes to anything else this time
    :raises QemuError: the secondary did not even start
    """
    plan = replace(session.plan, checkpoints=session.plan.checkpoints[: checkpoint + 1])
    same = {field.name: getattr(session, field.name) for field in fields(session)}
    evidence = Marked(**{**same, "plan": plan}, at=checkpoint).run()
    if evidence.checkpoints_acked == checkpoint and MARKER in evidence.log:
        return Moment.RESUME
    judgement = judge(evidence)
    return Moment.LOAD if judgement.verdict is verdict and evidence.checkpoints_acked == checkpoint else None


def marker() -> bytes:
    """The section as it goes on the wire: ``qemu_loadvm_section_start_full`` refuses an idstr it does not find."""
    return Section(
        type=SectionType.FULL,
        section_id=_SECTION_ID,
        idstr=MARKER,
        instance_id=0,
        version_id=1,
        offset=0,
        header_size=0,
        payload=b"",
        footer=True,
    ).encode()
