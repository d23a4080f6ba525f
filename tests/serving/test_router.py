"""A server asks a fitted router, and takes the list of models that a merge wrote."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from serving import MakeTuned
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.data.dataset import load_dataset
from tuneloop.models.adapters.assignment import BASE
from tuneloop.records.merge import TaskDeployment, TaskRoute
from tuneloop.records.record import write_record
from tuneloop.records.rows import last_user_turn
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiError, ApiRequest
from tuneloop.serving.http.app import whole
from tuneloop.serving.models import deployment_of
from tuneloop.serving.server import gateway_of, serve_config
from tuneloop.serving.store.store import opened, read_requests

QUESTIONS = {"cards": ["card", "chip", "pin", "cash"], "parcels": ["parcel", "street", "courier", "box"]}


@pytest.fixture
def runs(make_tuned: MakeTuned) -> list[str]:
    rng, found = random.Random(0), []
    for task, question in QUESTIONS.items():
        records = [
            {"text": f"my {rng.choice(question)} {rng.randrange(10**6)} and the {rng.choice(question)} again", "label": "ab"[i % 2]}
            for i in range(80)
        ]  # fmt: skip
        options = {"split": {"val": 0.2, "test": 0.2}, "duplicates": {"near": False}}
        found.append(str(make_tuned(records, options, task)))
    return found


def rows_of(run: str) -> list[str]:
    """What users say in its training rows."""
    return [last_user_turn(row) for row in load_dataset(Path(run) / "dataset").train]


def served(targets: list[str], folder: Path, work: Callable[[Gateway], Awaitable[Any]]) -> tuple[Any, list[str]]:
    """What a coroutine function makes of the gateway before some targets, and what was said."""
    said: list[str] = []

    async def main_() -> Any:
        config = serve_config(targets, [f"folder={folder}"])
        deployment = deployment_of(config)
        await deployment.engine.start()
        with reporting(say=said.append):
            gateway = gateway_of(config, deployment)
            try:
                return await work(gateway)
            finally:
                gateway.store.stop()
                await deployment.engine.stop()

    return asyncio.run(main_()), said


async def ask(gateway: Gateway, *turns: str, model: str = "router", talk: str = "") -> str:
    """Who answers."""
    roles = ["user", "assistant"] * len(turns)
    messages: Any = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    pieces = gateway.answer(ApiRequest("chat", model, messages, max_new_tokens=2), Caller(conversation=talk))
    return (await whole(pieces))[0].model.name


def test_a_router_sends_requests_to_their_model(runs: list[str], tmp_path: Path) -> None:
    router = str(tmp_path / "router")
    assert main(["route", "fit", *runs, "--features", "words", "--out", router, "-q"]) == 0

    cards, parcels = map(rows_of, runs)

    async def work(gateway: Gateway) -> None:
        assert list(gateway.models)[:3] == ["router", "cards", "parcels"]
        assert await ask(gateway, cards[0], model="") == "cards"
        assert await ask(gateway, parcels[0], talk="t") == "parcels"
        assert await ask(gateway, cards[1], talk="t") == "parcels"
        assert await ask(gateway, cards[2], "yes?", parcels[2]) == "cards"
        assert await ask(gateway, "sing a song of sixpence to nobody") == next(
            name for name, model in gateway.models.items() if model.adapter == BASE and name != "router"
        )
        with pytest.raises(ApiError, match="does not exist"):
            await ask(gateway, "x", model="rooter")

    _, said = served([*runs, router], tmp_path / "s", work)
    assert any(line.startswith("router") and "words" in line for line in said)
    with opened(tmp_path / "s") as store:
        kept = [r for r in read_requests(store) if r.error is None]
    assert [r.route["why"] if r.route else None for r in kept] == [
        "best",
        "best",
        "conversation",
        "best",
        "none of these",
    ]
    assert kept[0].route and kept[0].model == "cards" and kept[0].route["scores"]["cards"] > 0.5
    assert kept[4].adapter is None and kept[4].route and kept[4].route["similarity"] < kept[0].route["similarity"]

    async def later(gateway: Gateway) -> str:
        return await ask(gateway, cards[1], talk="t")

    assert served([router], tmp_path / "s", later)[0] == "parcels"  # another process, and the router's own models
    with pytest.raises(UserError, match="which is not served"):
        served([runs[0], router], tmp_path / "s", later)


def test_a_list_of_tasks_says_who_answers_each(runs: list[str], tmp_path: Path) -> None:
    from tuneloop.pipeline.answers.asking import open_with_task

    local = open_with_task(runs[0]).local
    assert local is not None
    routes = [TaskRoute(task=run, target=runs[0]) for run in runs]  # as after a merge: one model, two tasks
    write_record(tmp_path / "tasks.json", TaskDeployment(base=local.base, routes=routes))

    async def work(gateway: Gateway) -> None:
        assert gateway.models["cards"].adapter == gateway.models["parcels"].adapter != BASE
        assert await ask(gateway, "my box", model="parcels") == "parcels"

    served([str(tmp_path / "tasks.json")], tmp_path / "s", work)
    with pytest.raises(UserError, match="Two base models"):
        deployment_of(serve_config([str(tmp_path / "tasks.json")], ["base=llama-3.2-1b"]))
    with pytest.raises(UserError, match="Two of tasks"):
        serve_config(["a.json", "b.json"], [])
