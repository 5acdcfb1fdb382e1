# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of a host and of its QEMUs, and what two sets of them have to do with a load that failed."""

from harness.facts.collect import SCHEMA, collect_facts
from harness.facts.compare import FactChange, FactKind, Matters, Weight, compare_facts, incomparable
from harness.facts.explain import explaining
from harness.facts.kvm import KvmTried, kvm_tried

__all__ = [
    "SCHEMA",
    "FactChange",
    "FactKind",
    "KvmTried",
    "Matters",
    "Weight",
    "collect_facts",
    "compare_facts",
    "explaining",
    "incomparable",
    "kvm_tried",
]
