# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases and bundles that lie in the folders of runs, by the signature that they show."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.triage.case import CASE_FILE, SCHEMA

#: A folder that says that it is a bundle, and is larger, is none that is given away.
MOST_BYTES = 64 << 20
_MOST_JSON_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCase:
    """A case on the disk.

    :param cell: key of the cell that it is of
    :param sentence: what is needed, in words
    :param is_bundle: it has what a bug report needs
    """

    folder: Path
    signature: str
    cell: str
    sentence: str
    sections: tuple[str, ...]
    loads: int
    is_bundle: bool


def kept_cases(run: Path) -> dict[str, KeptCase]:
    """Those of a run by signature, bundles before cases that nobody made a bundle of; one that is damaged is none.

    :param run: folder of the run, which may be gone
    """
    found: dict[str, KeptCase] = {}
    for case in (*_cases(run, "bundles", is_bundle=True), *_cases(run, "cases", is_bundle=False)):
        found.setdefault(case.signature, case)
    return found


def case_in(folder: Path) -> KeptCase | None:
    """That of a bundle's folder, None where there is none."""
    return next(_read([folder / CASE_FILE], is_bundle=True), None)


def archive(case: KeptCase) -> bytes | None:
    """The files of a case as a ``.tar.gz``, the same bytes each time; links and folders stay out.

    :return: None when it is larger than :data:`MOST_BYTES`, or is gone
    """
    files = [path for path in sorted(case.folder.iterdir()) if path.is_file() and not path.is_symlink()]
    if sum(path.stat().st_size for path in files) > MOST_BYTES:
        return None
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files:
            data = path.read_bytes()
            member = tarfile.TarInfo(f"{case.folder.name}/{path.name}")
            member.size, member.mode = len(data), path.stat().st_mode & 0o777
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), mtime=0)


def _cases(run: Path, name: str, *, is_bundle: bool) -> Iterator[KeptCase]:
    return _read(sorted(run.glob(f"{name}/*/{CASE_FILE}")), is_bundle=is_bundle)


def _read(files: Iterable[Path], *, is_bundle: bool) -> Iterator[KeptCase]:
    for file in files:
        try:
            if file.stat().st_size < _MOST_JSON_BYTES:
                yield _case(file, is_bundle)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue


def _case(file: Path, is_bundle: bool) -> KeptCase:
    document = json.loads(file.read_bytes())
    if document["schema"] != SCHEMA:
        raise ValueError(document["schema"])
    return KeptCase(
        folder=file.parent,
        signature=str(document["signature"]["name"]),
        cell=str(document["cell"]),
        sentence=str(document["sentence"]),
        sections=tuple(map(str, document["sections"])),
        loads=int(document["loads"]),
        is_bundle=is_bundle,
    )
