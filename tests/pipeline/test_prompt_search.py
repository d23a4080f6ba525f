"""A search for a prompt: what it tries, what it spends, what it keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.inference import Endpoint
from tuneloop.inference.protocol import Kind, Target
from tuneloop.inference.request import Request
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prepare import prepare_stage
from tuneloop.pipeline.prompt_search import (
    LEAST_ROWS,
    PLAIN,
    Instructions,
    SearchBudget,
    answer_form,
    candidates_of,
    kept_answers,
    schedule_for,
    search_prompt,
    usable_examples,
)
from tuneloop.recipe import make_recipe
from tuneloop.records.completion import Completion
from tuneloop.records.prompt import PromptManifest
from tuneloop.records.rows import Dataset, Row, last_user_turn

MODEL = PromptManifest(model="scripted", served_as="scripted")
NOUNS = ["order", "parcel", "lamp", "kettle", "voucher"]


@dataclass
class Scripted(Target):
    """Answers right where the prompt has the word `helps`, else always the same; counts what it is asked."""

    helps: str
    name: str = "scripted"
    calls: list[str] = field(default_factory=list)
    fails_after: int = 10**9
    usd: float = 0.0

    no_scores = ("it writes", "")

    @property
    def kind(self) -> Kind:
        return "endpoint"

    @property
    def identity(self) -> str:
        return "scripted"

    @property
    def endpoint(self) -> Endpoint | None:  # type: ignore[override]
        return None

    def complete(self, requests: Sequence[Request], *, task: str = "") -> Iterator[Completion]:
        for request in requests:
            if len(self.calls) >= self.fails_after:
                raise UserError("The endpoint is gone", where=self.name, next_step="try again")
            whole = json.dumps(list(request.messages))
            self.calls.append(whole)
            right = LABELS[request.messages[-1]["content"].split("number ")[1].split("?")[0]]
            answer = right if self.helps in whole else "late"
            yield Completion(answer, prompt_tokens=len(whole) // 4, completion_tokens=1, engine="scripted")


LABELS: dict[str, str] = {}


@pytest.fixture
def prepared(tmp_path: Path, tiny_llama: Path) -> tuple[RunContext, Dataset]:
    with (tmp_path / "cases.jsonl").open("w") as file:
        for i in range(120):
            text = f"Case {i * 37 % 101}: the {NOUNS[i % 5]} sent on day {i * 13 % 29}, number {i * i}?"
            LABELS[str(i * i)] = ["late", "refund", "praise"][i % 3]
            file.write(json.dumps({"text": text, "label": LABELS[str(i * i)]}) + "\n")
    recipe = make_recipe(
        {
            "name": "cases", "model": str(tiny_llama), "output_dir": str(tmp_path / "run"),
            "evaluate": {"answer": "generate"},
            "data": {"sources": [str(tmp_path / "cases.jsonl")], "split": {"test": 0.2, "val": 0.3}},
        }
    )  # fmt: skip
    job = RunContext(recipe, tmp_path / "run")
    return job, prepare_stage(job)


def found(job: RunContext, dataset: Dataset, target: Target, calls: int, file: Path, **limits: Any) -> tuple[Any, Any]:
    brought = Instructions(rules="Rule one: think of the day.")
    candidates = candidates_of(dataset, target, job, MODEL, brought)
    with kept_answers(job, dataset, target, SearchBudget(calls, **limits), file) as asker:
        return search_prompt(asker, dataset, candidates, calls)


@given(calls=st.integers(0, 5000), rows=st.integers(0, 400), candidates=st.integers(0, 40))
def test_a_schedule_never_needs_more_calls_or_rows_than_there_are(calls: int, rows: int, candidates: int) -> None:
    schedule = schedule_for(calls, rows, candidates)
    if schedule is None:
        assert rows < LEAST_ROWS or calls < 100 or candidates < 2
        return
    assert schedule.calls <= calls and schedule.candidates <= candidates
    assert schedule.rows * len(schedule.rounds) + schedule.check <= rows
    assert list(schedule.rounds) == sorted(schedule.rounds, reverse=True) and schedule.check >= 4


def test_the_candidates_differ_and_begin_with_the_usual_examples(prepared: tuple[RunContext, Dataset]) -> None:
    job, dataset = prepared
    candidates = candidates_of(dataset, Scripted(""), job, MODEL, Instructions(rules="Be kind."))
    assert len({c.prompt.hash for c in candidates}) == len({c.name for c in candidates}) == len(candidates) > 12
    assert candidates[0].name == PLAIN and len(candidates[0].prompt.examples) == 3
    names = " ".join(c.name for c in candidates)
    assert all(word in names for word in ("nearest", "label list", "your rules", "no examples", "balanced"))


def test_a_prompt_that_is_better_on_rows_the_search_did_not_see_is_kept(
    prepared: tuple[RunContext, Dataset], tmp_path: Path
) -> None:
    job, dataset = prepared
    target = Scripted("Rule one")
    kept, search = found(job, dataset, target, 700, tmp_path / "answers.jsonl")
    assert "your rules" in kept.name and kept.name == search.kept
    assert search.best_value == 1.0 and search.plain_value is not None and search.plain_value < 0.6
    sent = {
        last_user_turn(Row("x", [*json.loads(call), {"role": "assistant", "content": ""}])) for call in target.calls
    }
    tests = {last_user_turn(row) for row in dataset.test}
    assert len(target.calls) <= 700 and not sent & tests


def test_plain_few_shot_stays_where_nothing_helps(prepared: tuple[RunContext, Dataset], tmp_path: Path) -> None:
    job, dataset = prepared
    kept, search = found(job, dataset, Scripted("no prompt has this"), 700, tmp_path / "answers.jsonl")
    assert kept.name == search.plain and (search.best_value is None or search.best_value <= (search.plain_value or 0))


@pytest.mark.parametrize("calls", [0, 10, 60, 150])
def test_the_calls_are_never_exceeded(prepared: tuple[RunContext, Dataset], tmp_path: Path, calls: int) -> None:
    job, dataset = prepared
    target = Scripted("Rule one")
    kept, search = found(job, dataset, target, calls, tmp_path / "answers.jsonl")
    assert len(target.calls) <= calls and (search.tried or kept.name == search.plain)


def test_the_dollars_are_never_exceeded(prepared: tuple[RunContext, Dataset], tmp_path: Path) -> None:
    job, dataset = prepared
    target = Scripted("Rule one")
    spent: list[float] = []

    def price(read: float, written: float) -> float:
        return read * 1e-5 + written * 1e-4

    found(job, dataset, target, 5000, tmp_path / "answers.jsonl", usd=0.6, usd_of=price)
    spent = [price(len(call) // 4, 1) for call in target.calls]
    assert 0 < sum(spent) <= 0.6


def test_no_time_asks_nothing(prepared: tuple[RunContext, Dataset], tmp_path: Path) -> None:
    job, dataset = prepared
    target = Scripted("Rule one")
    kept, search = found(job, dataset, target, 700, tmp_path / "answers.jsonl", seconds=1e-9)
    assert not target.calls and kept.name == search.plain


def test_what_broke_off_continues_without_repeating_a_call(
    prepared: tuple[RunContext, Dataset], tmp_path: Path
) -> None:
    job, dataset = prepared
    whole = Scripted("Rule one")
    expected = found(job, dataset, whole, 400, tmp_path / "whole.jsonl")
    broken = Scripted("Rule one", fails_after=90)
    with pytest.raises(UserError, match="gone"):
        found(job, dataset, broken, 400, tmp_path / "answers.jsonl")
    file = tmp_path / "answers.jsonl"
    known = len(file.read_text().splitlines())
    file.write_bytes(file.read_bytes() + b'{"key": "half a li')  # as a kill leaves it
    rest = Scripted("Rule one")
    kept, search = found(job, dataset, rest, 400, file)
    assert known > 0 and len(rest.calls) == len(whole.calls) - known
    assert (kept.name, search.tried, search.words) == (expected[0].name, expected[1].tried, expected[1].words)


def test_three_validation_rows_are_too_few(prepared: tuple[RunContext, Dataset], tmp_path: Path) -> None:
    job, dataset = prepared
    target = Scripted("Rule one")
    kept, search = found(job, replace(dataset, val=dataset.val[:3]), target, 700, tmp_path / "answers.jsonl")
    assert not target.calls and kept.name == search.plain and "too few" in search.words


def test_rows_with_the_text_of_a_test_row_are_never_shown(prepared: tuple[RunContext, Dataset]) -> None:
    _, dataset = prepared
    copied = replace(dataset, train=[*dataset.train, *(replace(row, id=f"copy-{row.id}") for row in dataset.test)])
    shown = {last_user_turn(row) for row in usable_examples(copied)}
    assert shown and not shown & {last_user_turn(row) for row in dataset.test}


def test_the_form_of_answers_is_said_as_a_sentence() -> None:
    def rows(*answers: str) -> list[Row]:
        return [Row(str(i), [{"role": "user", "content": "?"}, {"role": "assistant", "content": a}])
                for i, a in enumerate(answers)]  # fmt: skip

    assert "intent, amount" in (answer_form(rows('{"intent": "pay", "amount": 3}')) or "")
    assert "2 to 9 words" in (
        answer_form(rows("two words", *["one two three four five"] * 3, "a b c d e f g h i")) or ""
    )
    assert answer_form([]) is None
