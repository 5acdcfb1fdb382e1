# SPDX-License-Identifier: GPL-2.0-or-later
"""The tries of a search, a line of JSON each, so that a search that was interrupted can go on.

The first line says what is searched; a journal of anything else is put aside and begun anew. A last line that was
cut by a kill is passed over.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import HostError
from harness.triage.minimise import Attempt


class FileJournal:
    """A journal in a file. Use it as a context manager.

    :param path: the file; made when it is not there
    :param subject: what is searched, with what; anything that JSON can hold
    :raises HostError: it cannot be written
    """

    def __init__(self, path: Path, subject: Mapping[str, Any]) -> None:
        self.path = path
        self._told: dict[str, deque[Attempt]] = {}
        whole = self._read(subject)
        self.resumed = sum(len(attempts) for attempts in self._told.values())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # a cut last line is cut off, so that the next one does not hang on to it
            path.write_bytes(whole) if whole is not None else path.write_text(json.dumps(dict(subject)) + "\n")
            self._file = path.open("a")
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from error

    def recall(self, key: str) -> Attempt | None:
        """The next try of this candidate out of an earlier run."""
        kept = self._told.get(key)
        return kept.popleft() if kept else None

    def note(self, key: str, attempt: Attempt, what: str) -> None:
        """Write down a try; it is on its way to the disk when this returns."""
        try:
            self._file.write(json.dumps({"key": key, "what": what, **asdict(attempt)}) + "\n")
            self._file.flush()
        except OSError as error:
            raise HostError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self, *, done: bool = False) -> None:
        """Close the file; a search that came to its end needs it no more."""
        self._file.close()
        if done:
            self.path.unlink(missing_ok=True)

    def _read(self, subject: Mapping[str, Any]) -> bytes | None:
        """Take in an earlier run; its bytes up to the last whole line, None when there is nothing to go on from."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        try:
            if not lines or json.loads(lines[0]) != json.loads(json.dumps(dict(subject))):
                return None
            for line in lines[1:]:
                entry = json.loads(line)
                entry.pop("what")
                self._told.setdefault(entry.pop("key"), deque()).append(Attempt(**entry))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._told.clear()
            return None
        return whole

    def __enter__(self) -> FileJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
