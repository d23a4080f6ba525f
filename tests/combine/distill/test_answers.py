"""A teacher behind a server: what it answered is kept when it fails, nothing is paid twice, and it may not be another model."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_http import Quiet, listening

from tuneloop.combine.distill.answers import AT_ONCE, DistilJob, answers_of, same_model, taught_rows
from tuneloop.combine.distill.command import _score
from tuneloop.combine.options import DistilOptions
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.inference.endpoint import Endpoint
from tuneloop.pipeline.answers.asking import open_with_task
from tuneloop.records.rows import Dataset

COUNT = AT_ONCE + 20


def text(i: int) -> str:
    """Words that are no near copies of each other's."""
    rng = random.Random(i)
    return " ".join("".join(rng.choices("bdfgklmnprst", k=3)) + rng.choice("aeiou") for _ in range(6))


USAGE = {"prompt_tokens": 300, "completion_tokens": 50}
Says = Callable[[int, dict[str, Any]], tuple[int, str, str]]


class Server:
    """Answers by a function from (number of the request, body) to status, text, and the model's name."""

    def __init__(self, says: Says) -> None:
        self.says, self.bodies = says, list[dict[str, Any]]()
        outer, lock = self, threading.Lock()

        class Handler(Quiet):
            def do_POST(self) -> None:
                body = json.loads(self.body())
                with lock:
                    outer.bodies.append(body)
                    status, text, model = outer.says(len(outer.bodies), body)
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                self.answer(status, {"model": model, "choices": [choice], "usage": USAGE})

        self.handler, self.url = Handler, ""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(lambda number, body: (200, f"answer to {body['messages'][-1]['content']}", "big-2026-01-01"))
    with listening(made.handler) as address:
        made.url = f"{address}/v1"
        yield made


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    source = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Describe this: {text(i)}", "completion": f"own {text(i)}"} for i in range(COUNT)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PrepareConfig(sources=[str(source)], split={"val": 0.0, "test": 0.0})  # type: ignore[arg-type]
    return prepare_dataset(config, name="rows", seed=0, out=tmp_path / "dataset", measure=lambda row: TokenCount(40, 4))


def job(server: Server, dataset: Dataset, out: Path, **options: Any) -> DistilJob:
    def endpoint(url: str) -> Endpoint:
        return Endpoint(url, "big", concurrency=4, retries=0, pause=0.01, **prices)

    prices = options.pop("prices", {})
    return DistilJob(open_with_task(server.url, endpoint=endpoint), dataset, out, DistilOptions(**options))


def test_after_a_failure_in_the_middle_only_the_rest_is_asked(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    plain, count = server.says, len(dataset.train)
    server.says = lambda number, body: plain(number, body) if number <= AT_ONCE - 5 else (503, "", "big")
    with pytest.raises(UserError, match=r"answered none|failed"):
        answers_of(job(server, dataset, tmp_path / "run"))
    kept = read_jsonl(next((tmp_path / "run" / "distill").glob("answers-*.jsonl")))
    assert AT_ONCE - 5 - 4 <= len(kept) <= AT_ONCE - 5
    server.says = plain
    before = len(server.bodies)
    found = answers_of(job(server, dataset, tmp_path / "run"))
    assert len(server.bodies) - before == count - len(kept)
    assert {row.id: found[row.id].text for row in dataset.train} == {
        row.id: f"answer to {row.prompt[-1]['content']}" for row in dataset.train
    }
    before = len(server.bodies)
    answers_of(job(server, dataset, tmp_path / "run"))
    assert len(server.bodies) == before


def test_the_teacher_sees_training_rows_in_its_prompt(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    answers_of(job(server, dataset, tmp_path / "run", few_shot=2))
    own = {(row.prompt[-1]["content"], row.answer) for row in dataset.train}
    for body in server.bodies:
        *shown, question = [turn["content"] for turn in body["messages"] if turn["role"] != "system"]
        assert {(shown[0], shown[1]), (shown[2], shown[3])} < own and question in {prompt for prompt, _ in own}
    before = len(server.bodies)
    answers_of(job(server, dataset, tmp_path / "run"))
    assert len(server.bodies) == before + len(dataset.train), "without examples the answers are others"


def test_a_few_rows_that_fail_for_good_are_left_out_and_not_asked_again(
    server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    plain = server.says
    server.says = lambda number, body: (400, "", "big") if number == 9 else plain(number, body)
    assert sum(bool(answer.error) for answer in answers_of(job(server, dataset, tmp_path / "run")).values()) == 1
    before = len(server.bodies)
    assert sum(bool(answer.error) for answer in answers_of(job(server, dataset, tmp_path / "run")).values()) == 1
    assert len(server.bodies) == before


def test_another_model_is_refused_unless_that_is_wanted(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    server.says = lambda number, body: (200, "cheap", "big-mini-2026-01-01")
    with pytest.raises(UserError, match="big-mini-2026-01-01 has answered, and big was requested"):
        answers_of(job(server, dataset, tmp_path / "run"))
    assert len(server.bodies) == 1  # nothing more is paid for
    assert answers_of(job(server, dataset, tmp_path / "run", any_model=True))


def test_where_another_model_joins_in_what_the_right_one_answered_is_kept(
    server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    plain = server.says
    server.says = lambda number, body: plain(number, body) if number % 2 else (200, "cheap", "other")
    with pytest.raises(UserError, match="other has answered"):
        answers_of(job(server, dataset, tmp_path / "run"))
    server.says, honest = plain, (len(server.bodies) + 1) // 2
    before = len(server.bodies)
    assert "cheap" not in {answer.text for answer in answers_of(job(server, dataset, tmp_path / "run")).values()}
    assert len(server.bodies) - before == len(dataset.train) - honest


@pytest.mark.parametrize(
    ("wanted", "said", "same"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.3-8b-instruct", False),
        ("m", "m", True),
    ],
)
def test_names_of_one_model(wanted: str, said: str, same: bool) -> None:
    assert same_model(wanted, said) is same


def test_the_answer_that_most_agree_on_is_picked_and_more_answers_cost_only_themselves(
    server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    def says(number: int, body: dict[str, Any]) -> tuple[int, str, str]:
        return (
            200,
            ["wholly different words", "a small red house", "the red house", "one red house"][body.get("seed", 0)],
            "big",
        )

    server.says = says
    first = answers_of(job(server, dataset, tmp_path / "run"))
    assert {answer.text for answer in first.values()} == {"wholly different words"}
    found = answers_of(job(server, dataset, tmp_path / "run", best_of=4))
    assert len(server.bodies) == 4 * len(dataset.train)
    assert {answer.text for answer in found.values()} <= {"the red house", "one red house", "a small red house"}
    own = answers_of(job(server, dataset, tmp_path / "run", best_of=4, pick="reference"))
    assert len(server.bodies) == 4 * len(dataset.train) and len(own) == len(dataset.train)


def test_the_best_of_those_that_pass_the_gate_is_learned_and_what_fails_is_counted(
    server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("lacks: [sorry]\nmost_words: 3\n")
    said = ["sorry, no answer", "a small red house", "red house", "RED house"]
    server.says = lambda number, body: (200, said[body.get("seed", 0)], "big")
    item = job(server, dataset, tmp_path / "run", gate=str(gate))
    with pytest.raises(UserError, match=f"{len(dataset.train)} fails the gate"):
        taught_rows(item)
    four = job(server, dataset, tmp_path / "run", best_of=4, gate=str(gate))
    learned = taught_rows(four).train
    assert len(learned) == len(dataset.train) and {row.answer for row in learned} <= {"red house", "RED house"}


def test_a_judge_rates_once(server: Server, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.evaluation.judge import Judge

    asked: list[int] = []

    def choose(turns: Any, options: Any) -> list[str]:
        asked.append(len(turns))
        return ["5" if "drawn" in turn[-1]["content"] else "2" for turn in turns]

    monkeypatch.setattr(Judge, "choose", property(lambda self: choose))
    server.says = lambda number, body: (200, "drawn" if body.get("seed") else "likeliest", "big")
    for _ in range(2):
        found = answers_of(job(server, dataset, tmp_path / "run", best_of=2, pick="judge", judge="small"))
        assert {answer.text for answer in found.values()} == {"drawn"}
    assert sum(asked) == 2 * len(dataset.train)


def test_a_server_s_answers_cost_what_its_tokens_do(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    prices = {"usd_per_million_input": 2.0, "usd_per_million_output": 8.0}
    for given, usd in ((prices, 1000 * (300 * 2 + 50 * 8) / 1e6), ({}, None)):
        told = job(server, dataset, tmp_path / "run", prices=given)
        cost = _score(told, dataset.train[:3], told.teacher).cost
        assert cost.usd_per_1000 == (None if usd is None else pytest.approx(usd)) and cost.usd_per_hour is None
