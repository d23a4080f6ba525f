"""`route fit --feedback`: from a store with routed requests and thumbs to a router; what can't be learned from is said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, write_jsonl
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serve.store import insert, opened
from tuneloop.workflows.route import RouteJob
from tuneloop.workflows.serve_router import decider

Said = pytest.CaptureFixture[str]
WORDS = {
    "small": ["add", "sum", "plus", "times", "minus"],
    "large": ["prove", "derive", "theorem", "lemma", "integral"],
}


def told(said: Said, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == status, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


def text(kind: str, rng: random.Random) -> str:
    return f"please {rng.choice(WORDS[kind])} and {rng.choice(WORDS[kind])} {rng.randrange(10**6)}"


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> Path:
    """In use: fitted to outcomes in which the small model is always right, so that everything goes there but for chance."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    lines = ["prompt,small,large", *(f"{text(rng.choice(list(WORDS)), rng)},1,{rng.randrange(2)}" for _ in range(200))]
    Path("o.csv").write_text("\n".join(lines) + "\n")
    told(capsys, "route", "fit", "--outcomes", "o.csv", "--features", "words", "--explore", "0.4", "--out", "old")
    return tmp_path / "old"


def write_store(router: Path, count: int, thumbs: bool = True, chance: bool = True, voice: str | None = None) -> None:
    from tuneloop.combine.router import load_router

    rng, loaded = random.Random(1), load_router(router)
    random.seed(2)
    decide = decider(loaded, RouteJob("words"), loaded.names, "small")
    records: list[Any] = []
    for i in range(count):
        kind = rng.choice(list(WORDS))
        asked = text(kind, rng)
        route = decide(asked).logged()
        good = rng.random() < (0.95 if route["model"] == kind else 0.3)
        route = route if chance else {name: value for name, value in route.items() if name != "chance"}
        prompt: Any = [{"role": "user", "content": asked}]
        records.append(
            StoredRequest(
                id=f"r{i:05}",
                time="2026-01-01T00:00:00Z",
                model="router",
                prompt=prompt,
                completion="x",
                route=route,
                voice=voice,
            )
        )
        if thumbs:
            records.append(
                Feedback(id=f"f{i:05}", request=f"r{i:05}", kind="thumbs", value=good, time="2026-01-01T00:00:01Z")
            )
    with opened("serve", create=True) as store:
        insert(store, records)


def test_a_router_in_use_is_taught_by_thumbs(router: Path, capsys: Said) -> None:
    write_store(router, 900)
    found = told(
        capsys, "route", "fit", "--feedback", "serve", "--from", str(router), "--explore", "0.1", "--out", "new"
    )
    figures = found["figures"]
    assert figures["in_use"]["high"] < figures["quality"]["low"] and figures["quality"]["value"] > 0.85
    assert [route["name"] for route in found["routes"]] == ["small", "large"] and found["explore"] == 0.1
    assert read_json(Path("new/router.json"))["kind"] == "logreg"
    assert main(["route", "fit", "--feedback", "serve", "--from", str(router), "--out", "new"]) == 0
    assert "in use, as people have rated it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda router: write_store(router, 50), "50 rated requests can be learned from, and 100 are needed"),
        (lambda router: write_store(router, 150, thumbs=False), "150 without feedback"),
        (lambda router: write_store(router, 150, chance=False), "150 no chance is known"),
        (lambda router: write_store(router, 150, voice="key:bot"), "130 of users who have given as many as one may"),
    ],
)
def test_too_little_is_said(router: Path, capsys: Said, write: Callable[[Path], None], words: str) -> None:
    write(router)
    assert main(["route", "fit", "--feedback", "serve", "--from", str(router), "--out", "new"]) == 2
    error = capsys.readouterr().err
    assert words in error and "--explore" in error and not Path("new").exists()


def test_feedback_needs_the_router_that_was_in_use(router: Path, capsys: Said) -> None:
    write_jsonl("x.jsonl", [{"text": "x"}])
    for wrong in (
        ["--feedback", "serve"],
        ["--from", str(router)],
        ["--feedback", "s", "--from", str(router), "--cost", "small=1"],
    ):
        assert main(["route", "fit", *wrong]) == 2
    assert "name nothing else" in capsys.readouterr().err


def test_a_share_of_requests_goes_by_chance_and_the_chance_is_logged(router: Path) -> None:
    from tuneloop.combine.router import load_router

    loaded = load_router(router)
    decide = decider(loaded, RouteJob("words"), loaded.names, "small")
    random.seed(3)
    found = [decide("please add 1 and 2") for _ in range(600)]
    best = max(found[0].scores, key=lambda name: found[0].scores[name])
    share = sum(one.model == best for one in found) / len(found)
    assert share == pytest.approx(0.8, abs=0.06), "0.6 of the best, and half of the rest by chance"
    assert {round(one.chance or 0, 6) for one in found if one.model == best} == {0.8}
    assert {(round(one.chance or 0, 6), one.why) for one in found if one.model != best} == {(0.2, "by chance")}
