"""Rules of `rules.yaml`: conditions on facts, what they give, what they say, and where that comes from."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.foreign import packaged_yaml
from tuneloop.records.advice import AdviceReason

RULES = Path(__file__).with_name("rules.yaml")
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "is": operator.eq, "is_not": operator.ne, "below": operator.lt, "at_least": operator.ge, "above": operator.gt,
}  # fmt: skip


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
    tree = packaged_yaml(RULES)
    return tuple(
        Rule(r["id"], kind, r["when"], r.get(kind, ""), r["say"], r["source"])
        for kind in ("answer", "method", "note")
        for r in tree[kind]
    )


def applies(rule: Rule, facts: Mapping[str, Any]) -> bool:
    """Whether all conditions of a rule hold; an unknown fact holds for none but `known: false`."""

    def holds(value: Any, op: str, to: Any) -> bool:
        if op == "known":
            return (value is not None) is to
        return value is not None and to is not None and bool(OPERATORS[op](value, to))

    return all(
        holds(facts.get(name), op, facts.get(to) if isinstance(to, str) and to in facts else to)
        for name, conditions in rule.when.items()
        for op, to in conditions.items()
    )


def decide(facts: Mapping[str, Any], rules: Sequence[Rule] | None = None) -> dict[str, list[AdviceReason]]:
    """The first answer and the first method that apply, and all notes; these may look at the answer (fact `advice`)."""
    facts = dict(facts)
    reasons: dict[str, list[AdviceReason]] = {"answer": [], "method": [], "note": []}
    for rule in rules if rules is not None else load_rules():
        if (rule.kind == "note" or not reasons[rule.kind]) and applies(rule, facts):
            if rule.kind == "answer":
                facts["advice"] = rule.gives
            says, seen = rule.say.format_map(facts), {name: facts.get(name) for name in rule.when}
            reasons[rule.kind].append(
                AdviceReason(rule=rule.id, kind=rule.kind, gives=rule.gives, says=says, source=rule.source, facts=seen)
            )
    return reasons
