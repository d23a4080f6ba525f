"""The standard: its price before anything is sent, what the model has seen, answers that are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai_service import KEY, MODEL, Service

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.inference.endpoint import Endpoint
from tuneloop.migrate.command import copy_service, look
from tuneloop.migrate.freeze import freeze_answers, plan_freezing, tokens_of

OUT = Path("evaluations/openai-ft")


@pytest.fixture
def dataset(service: Service) -> str:
    copy_service(service.url, KEY, look(service.url, KEY, Path("openai")), Path("openai"))
    test = "split.test=openai/files/file-val-val.jsonl"
    assert main(["prepare", "openai/files/file-train-train.jsonl", test, "-o", "unseen", "--quiet"]) == 0
    return "unseen"


def endpoint(service: Service, model: str = MODEL, **more: float) -> Endpoint:
    return Endpoint(service.url, model, KEY, concurrency=4, pause=0.01, **more)  # type: ignore[arg-type]


def test_the_price_is_that_of_fine_tunes_or_yours_and_a_limit_holds(service: Service, dataset: str) -> None:
    plan = plan_freezing(endpoint(service), dataset, copy=Path("openai"), most_usd=0)
    assert plan.budget.usd is not None and plan.budget.most_usd is not None
    assert plan.budget.usd == pytest.approx(0.3e-6 * plan.budget.prompt_tokens + 1.2e-6 * plan.budget.tokens, rel=0.01)
    assert plan.budget.most_usd == pytest.approx(0.3e-6 * plan.budget.prompt_tokens + 1.2e-6 * 60 * 256, rel=0.01)
    own = plan_freezing(endpoint(service, usd_per_million_input=100.0), dataset, copy=Path("openai"), most_usd=0)
    assert own.budget.usd is not None and own.budget.usd > 50 * plan.budget.usd and "your price" in own.budget.words
    for model, limit, text in ((MODEL, 0.0001, "may cost more"), ("mine", 1.0, "No price is known")):
        with pytest.raises(UserError, match=text):
            plan_freezing(endpoint(service, model), dataset, copy=Path("openai"), most_usd=limit)
    assert not any(call.startswith("POST") for call in service.calls)


def test_what_was_billed_without_a_known_price_is_not_called_free(
    service: Service, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["migrate", "freeze", "mine", "-d", dataset, "--base-url", service.url, "--yes", "--limit", "5"]
    assert main([*command, "--out", "a"]) == 0
    text = "".join(capsys.readouterr())
    assert len(service.bodies) == 5 and "cost unknown" in text and "$0.0000" not in text
    assert main([*command, "--usd-per-million-output", "1", "--out", "b"]) == 0
    assert "spent now" in "".join(capsys.readouterr())


def test_it_says_by_which_metric_a_successor_will_be_compared(service: Service, dataset: str) -> None:
    decides = "decides   accuracy (3 labels)"
    assert decides in plan_freezing(endpoint(service), dataset, copy=Path("openai"), most_usd=0).notes[0]
    file = "openai/files/file-train-train.jsonl"
    assert main(["prepare", file, "data.task=generation", "-o", "texts", "--quiet"]) == 0
    note = plan_freezing(endpoint(service), "texts", copy=Path("openai"), most_usd=0).notes[0]
    assert "rougeL (task: generation)" in note


def test_rows_that_the_model_was_trained_on_are_counted(service: Service, dataset: str) -> None:
    def notes(data: str, folder: str = "openai") -> str:
        return " ".join(plan_freezing(endpoint(service), data, copy=Path(folder), most_usd=0).notes)

    assert "trained on" not in notes("unseen")
    assert main(["prepare", "openai/files/file-train-train.jsonl", "-o", "seen", "--quiet"]) == 0
    assert "trained on 11 of 11 test rows" in notes("seen")
    assert "not known" in notes("unseen", "nowhere")


def test_answers_are_kept_without_log_probabilities_where_the_model_gives_none(service: Service, dataset: str) -> None:
    plan = plan_freezing(endpoint(service), dataset, copy=Path("openai"), most_usd=0, limit=20)
    assert plan.budget.rows == 20
    service.refuse = lambda body: "logprobs are not allowed" if "logprobs" in body else ""
    freeze_answers(plan, OUT)
    assert len(service.bodies) == 20 and "logprobs" not in service.bodies[-1]
    record = read_json(OUT / "eval.json")
    assert (record["n"], record["metrics"]["accuracy"]["value"]) == (20, 1.0)
    assert "latency" not in [line.split(":")[0] for line in (OUT / "suite.yaml").read_text().splitlines()]
    freeze_answers(plan, OUT)
    assert len(service.bodies) == 20, "the second time every answer is known"


def test_tokens_are_counted_rather_too_many() -> None:
    assert 25 < tokens_of("a" * 100) < 40
    assert tokens_of("配送" * 50) == 100
