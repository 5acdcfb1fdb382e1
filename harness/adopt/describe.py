# SPDX-License-Identifier: GPL-2.0-or-later
"""A vmdesc for sections that came without one, made of what another stream of the same machine says of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from harness.stream.model import Section
from harness.stream.vmdesc import VmDesc

Described = dict[str, Any]


def describe(sections: Iterable[Section], like: VmDesc) -> VmDesc:
    """Describe sections in their order.

    A machine that has run may save more than one that has not: what follows the fields that both have is one opaque
    field, and so is a whole section that is shorter or of another version. The fields that park a CPU come first.
    """
    document = json.loads(like.text)
    known: dict[tuple[str, int], list[Described]] = {}
    for device in document["devices"]:
        known.setdefault((device["name"], device["instance_id"]), []).append(device)
    met: Counter[tuple[str, int]] = Counter()
    devices = []
    for section in sections:
        candidates = known.get(section.key, [])
        number, met[section.key] = met[section.key], met[section.key] + 1
        found = candidates[number % len(candidates)] if candidates else None
        devices.append(_described(section, found))
    return VmDesc.from_json(json.dumps({"page_size": like.page_size, "devices": devices}).encode())


def _described(section: Section, found: Described | None) -> Described:
    size = len(section.payload)
    if section.desc is not None and section.desc.size_bytes == size and found is not None:
        return found
    kept = {} if found is None or found.get("version") != section.version_id else found
    described: Described = {"name": section.idstr, "instance_id": section.instance_id}
    described |= {key: kept[key] for key in ("vmsd_name", "version") if key in kept}
    fields, left = [], size
    for each in kept.get("fields", ()):
        wire_bytes = each["size"] * each.get("array_len", 1)
        if wire_bytes > left:
            break
        fields.append(each)
        left -= wire_bytes
    if left:
        fields.append({"name": "data", "type": "buffer", "size": left})
    return {**described, "fields": fields}
