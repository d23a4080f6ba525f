"""A server asks rows of the evaluation before it serves, and refuses a model that answers other than it was evaluated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patience import HANG
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.protocol import Served
from tuneloop.pipeline.answers.asking import task_of_run
from tuneloop.pipeline.evaluate import evaluate_target
from tuneloop.serving.canary import prove
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.models import canaries_of, deployment_of
from tuneloop.serving.server import _started

MakeTuned = Callable[..., Path]
LABELS = ["late", "lost", "thanks"]


def tickets(n: int) -> list[dict[str, Any]]:
    return [{"text": f"order {i * 37}: {LABELS[i % 3]}?", "label": LABELS[i % 3]} for i in range(n)]


def started(run: Path, **settings: Any) -> list[str]:
    """What a server says until it is ready."""
    said: list[str] = []
    config = ServeConfig(adapters={"support": str(run)}, **settings)

    async def main() -> None:
        async with _started(config, {}):
            pass

    with reporting(say=said.append):
        asyncio.run(asyncio.wait_for(main(), HANG))
    return said


def checked(run: Path, capsys: pytest.CaptureFixture[str], status: int) -> dict[str, Any]:
    """What `serve --check` says."""
    capsys.readouterr()
    assert main(["serve", f"adapters.support={run}", "--check", "--json", "-q"]) == status
    (found,) = json.loads(capsys.readouterr().out)["models"]
    return found  # type: ignore[no-any-return]


def test_a_server_proves_its_models_by_their_evaluation(
    make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tuned(tickets(80))
    assert checked(run, capsys, 3)["n"] == 0
    assert canaries_of(str(run), "h", task_of_run(run)) == [], "it was not evaluated"
    evaluate_target(str(run))
    assert "proof     support: 5 of 5 test rows are answered as in the evaluation" in started(run)
    assert not any(line.startswith("proof") for line in started(run, canaries=0))
    file = run / "samples.jsonl"
    n = len(file.read_text().splitlines())
    right = checked(run, capsys, 0)
    assert (right["n"], right["same"], right["failed"], right["examples"], right["share"]) == (n, n, 0, [], 1.0)
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    for sample in samples:
        sample["prediction"] = LABELS[(LABELS.index(sample["prediction"]) + 1) % 3]
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    with pytest.raises(UserError, match="0 of 5 answers are those of the evaluation"):
        started(run)
    assert started(run, canaries=0) is not None
    wrong = checked(run, capsys, 1)
    assert (wrong["n"], wrong["same"], len(wrong["examples"])) == (n, 0, 3)


def test_written_answers_are_held_to_their_beginning(make_tuned: MakeTuned, tiny_llama: Path) -> None:
    rows = [
        {"prompt": f"Say {i}", "completion": "All is well, and the parcel is on its way to you."} for i in range(80)
    ]
    run = make_tuned(rows)
    evaluate_target(str(run), settings=["evaluate.max_new_tokens=30"])

    async def main() -> None:
        engine = LocalEngine(Served(str(tiny_llama)), [Served(str(run / "adapter"))])
        await engine.start()
        (name,) = engine.adapters
        canaries = canaries_of(str(run), name, task_of_run(run))
        assert len(canaries) == 5 and not canaries[0].request.choices
        assert [proof.same >= 4 for proof in await prove(engine, canaries)] == [True]
        await engine.stop()

    asyncio.run(asyncio.wait_for(main(), HANG))


@pytest.mark.parametrize("choice", [True, False], ids=["labels", "text"])
def test_deterministic_answers_are_all_those_of_the_evaluation(
    make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, choice: bool
) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "bfloat16")
    prompts = [f"Say {i} {'and more ' * (i % 17)}" for i in range(120)]
    run = make_tuned(
        tickets(120) if choice else [{"prompt": prompt, "completion": "All is well."} for prompt in prompts]
    )
    evaluate_target(str(run), settings=["evaluate.max_new_tokens=24", "evaluate.deterministic=true"])
    capsys.readouterr()
    assert main(["serve", f"adapters.support={run}", "deterministic=true", "slots=5", "--check", "--json", "-q"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["n"] >= 10 and model["same"] == model["n"]


def test_only_our_own_engine_is_deterministic() -> None:
    with pytest.raises(UserError, match="Only our own engine gives deterministic answers"):
        deployment_of(ServeConfig(engine="http://127.0.0.1:9/v1", base="base", deterministic=True))
