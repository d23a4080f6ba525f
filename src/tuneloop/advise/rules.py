"""Rules of `rules.yaml`: conditions on facts, what they give, what they say, and where that comes from."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneloop.records.advice import AdviceReason

RULES = Path(__file__).with_name("rules.yaml")


@dataclass(frozen=True)
class Rule:
    """A rule of `rules.yaml`; see there."""

    id: str
    kind: str
    when: Mapping[str, Mapping[str, Any]]
    gives: str
    say: str
    source: str


@functools.cache
def load_rules() -> tuple[Rule, ...]:
    """All rules in their order."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tree = yaml.load(RULES.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - the safe loader, in C
    return tuple(
        Rule(r["id"], kind, r["when"], r.get(kind, ""), r["say"], r["source"])
        for kind in ("answer", "method", "note")
        for r in tree[kind]
    )


def applies(rule: Rule, facts: Mapping[str, Any]) -> bool:
    """Whether all conditions of a rule hold; an unknown fact holds for none but `known: false`."""
    return all(
        _holds(facts.get(name), op, facts.get(to) if isinstance(to, str) and to in facts else to)
        for name, conditions in rule.when.items()
        for op, to in conditions.items()
    )


def _holds(value: Any, op: str, to: Any) -> bool:
    if op == "known":
        return (value is not None) is to
    if value is None or to is None:
        return False
    if op in ("is", "is_not"):
        return bool(value == to) is (op == "is")
    return bool({"below": value < to, "at_least": value >= to, "above": value > to}[op])


def decide(facts: Mapping[str, Any], rules: Sequence[Rule] | None = None) -> dict[str, list[AdviceReason]]:
    """The first answer and the first method that apply, and all notes; these may look at the answer as the fact `advice`."""
    facts = dict(facts)
    reasons: dict[str, list[AdviceReason]] = {"answer": [], "method": [], "note": []}
    for rule in rules if rules is not None else load_rules():
        if (rule.kind == "note" or not reasons[rule.kind]) and applies(rule, facts):
            if rule.kind == "answer":
                facts["advice"] = rule.gives
            looked = {name: facts.get(name) for name in rule.when}
            reasons[rule.kind].append(
                AdviceReason(
                    rule=rule.id,
                    kind=rule.kind,
                    gives=rule.gives,
                    says=rule.say.format_map(facts),
                    source=rule.source,
                    facts=looked,
                )
            )
    return reasons
