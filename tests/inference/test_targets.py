"""Every kind of target answers the same requests behind the same methods; what can't be answered says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_http import Quiet, listening

from tuneloop.core.errors import UserError
from tuneloop.inference import targets
from tuneloop.inference.endpoint import Endpoint
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.openai.target import EndpointTarget
from tuneloop.inference.protocol import Target
from tuneloop.inference.request import Request, Sampling
from tuneloop.inference.targets import PredictionsTarget, open_target
from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.adapters.lora import LoraShape, adapter_state, add_lora, lora_layers, save_adapter
from tuneloop.models.load import load_model

TURNS: list[Any] = [[{"role": "user", "content": text}] for text in ("Rain?", "Where is my parcel?", "Why " * 9)]


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = load_model(str(tiny_llama), dtype="float32"), tmp_path_factory.mktemp("adapter")
    shape = LoraShape(4, 8.0, 0.0, ("q_proj", "down_proj"))
    add_lora(model.net, shape, seed=0)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.normal_(std=0.2)
    save_adapter(folder, adapter_state(model.net), shape, str(tiny_llama), model.fingerprint)
    return folder


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An endpoint that answers in capitals; its address, and the bodies that it got."""
    bodies: list[dict[str, Any]] = []

    class Handler(Quiet):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.body()))
            text = bodies[-1]["messages"][-1]["content"].upper()
            answer = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            self.answer(200, {**answer, "usage": {"prompt_tokens": 5, "completion_tokens": 2}})

    with listening(Handler) as address:
        yield address, bodies


def requests_of(**settings: Any) -> list[Request]:
    return [Request(turns, max_new_tokens=6, id=str(i), **settings) for i, turns in enumerate(TURNS)]


def test_a_model_and_an_adapter_answer_as_generate_does(tiny_llama: Path, adapter: Path) -> None:
    found = {}
    for name in (str(tiny_llama), str(adapter)):
        target = open_target(name)
        assert isinstance(target, LocalTarget)
        prompts = [target.model.template.prompt_ids(turns) for turns in TURNS]
        found[target.kind] = list(target.complete(requests_of()))
        assert found[target.kind] == generate(target.model, prompts, max_new_tokens=6)
        streamed = [list(target.stream(request))[-1].completion for request in requests_of()]
        assert streamed == found[target.kind]
    assert found.keys() == {"model", "adapter"} and found["model"] != found["adapter"]


def test_an_adapter_with_another_scale_is_another_target(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "louder")
    assert open_target(str(tmp_path / "louder")).identity == open_target(str(adapter)).identity
    file = tmp_path / "louder" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 32}))
    assert open_target(str(tmp_path / "louder")).identity != open_target(str(adapter)).identity


def test_the_base_of_an_adapter_is_asked_by_name_or_by_what_holds_in_the_thread(
    tiny_llama: Path, adapter: Path
) -> None:
    base, target = open_target(str(tiny_llama)), open_target(str(adapter))
    expected = [answer.token_ids for answer in base.complete(requests_of())]
    assert [answer.token_ids for answer in target.complete(requests_of(adapter=BASE))] == expected
    labels = ["yes", "no", "perhaps"]
    scores = [answer.label_scores for answer in base.score(requests_of(), labels, exact=True)]
    with applied(BASE):
        assert [answer.token_ids for answer in target.complete(requests_of())] == expected
        found = list(target.score(requests_of(), labels, exact=True))
    assert [answer.label_scores for answer in found] == scores and {a.adapter for a in found} == {BASE}
    assert [a.label_scores for a in target.score(requests_of(), labels, exact=True)] != scores


def test_prompts_that_cannot_be_asked_have_an_error_in_their_place(tiny_llama: Path, monkeypatch: Any) -> None:
    target = open_target(str(tiny_llama))
    monkeypatch.setattr("tuneloop.models.load.Model.context", 40)
    asked = [*requests_of()[:2], Request([{"role": "user", "content": "long " * 60}]), Request(continues="Once upon")]
    found = list(target.complete(asked))
    assert [answer.finish == "error" for answer in found] == [False, False, True, False]
    assert found[2].error.startswith("too_long: ") and found[3].completion_tokens <= 40
    scored = list(target.score(asked, ["yes", "no"]))
    assert [answer.finish for answer in scored] == ["choice", "choice", "error", "choice"]


def test_labels_may_follow_the_beginning_of_an_answer(tiny_llama: Path) -> None:
    target = open_target(str(tiny_llama))
    assert isinstance(target, LocalTarget)
    plain, led = (list(target.score(requests_of(), ["a", "b"], exact=True, lead=lead)) for lead in ("", "Verdict:"))
    assert [a.label_scores for a in plain] != [a.label_scores for a in led]
    assert [b.prompt_tokens - a.prompt_tokens for a, b in zip(plain, led, strict=True)] == [
        len(target.model.template.encode("Verdict:"))
    ] * 3


def test_an_endpoint_is_asked_the_same_requests(server: tuple[str, list[dict[str, Any]]]) -> None:
    url, bodies = server
    target = open_target(url, endpoint=lambda address: Endpoint(address, "m", retries=0, concurrency=1))
    drawn = Request(TURNS[1], sampling=Sampling(0.7, seed=3, top_p=0.9, top_k=5), stop=("\n",), adapter="support")
    found = list(target.complete([*requests_of()[:1], drawn, Request(continues="Once"), Request(ids=[1, 2])]))
    assert [answer.text for answer in found] == ["RAIN?", "WHERE IS MY PARCEL?", "", ""]
    assert [answer.error.split(":")[0] for answer in found] == ["", "", "no_prompt", "no_prompt"]
    assert found[0].prompt_tokens == 5 and found[0].total_ms is not None and found[0].engine.startswith(url)
    assert bodies[0] == {"model": "m", "messages": TURNS[0], "max_tokens": 6, "temperature": 0.0}
    more = {name: bodies[1][name] for name in ("model", "temperature", "seed", "top_p", "top_k", "stop")}
    assert more == {"model": "support", "temperature": 0.7, "seed": 3, "top_p": 0.9, "top_k": 5, "stop": ["\n"]}
    assert [update.text for update in target.stream(requests_of()[0])] == ["RAIN?"]


def test_a_file_of_answers_is_found_by_the_ids_of_the_requests() -> None:
    target = PredictionsTarget("answers.jsonl", {"0": "dry", "2": "because"})
    found = list(target.complete(requests_of()))
    assert [answer.text for answer in found] == ["dry", "", "because"] and found[1].error == "no prediction"


def test_a_file_of_predictions_is_opened_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": "0", "prediction": "dry"}\n{"id": "2", "prediction": "because"}\n')
    target = open_target(str(file))
    assert target.kind == "predictions"
    assert [answer.text for answer in target.complete(requests_of())] == ["dry", "", "because"]
    assert [answer.text for answer in open_target("a.csv", answers=lambda _: {"1": "x"}).complete(requests_of())] == [
        "",
        "x",
        "",
    ]
    file.write_text('{"id": "0"}\n')
    with pytest.raises(UserError, match="Not a prediction"):
        open_target(str(file))


def test_an_engine_is_measured_and_served_by_its_place_in_the_list(tmp_path: Path, monkeypatch: Any) -> None:
    ours = targets.ENGINES[-1]
    other = replace(
        ours, name="other", claims=lambda name: name.endswith(".other"),
        target=lambda name, base, template: LocalTarget("by other", name, source=template),
    )  # fmt: skip
    monkeypatch.setattr(targets, "ENGINES", (other, ours))
    assert open_target("weights.other", template="t") == LocalTarget("by other", "weights.other", source="t")
    assert targets.engine_for("weights.other") is targets.engine_for("smollm2-135m", "other") is other
    assert targets.engine_for("smollm2-135m") is targets.engine_for("weights.other", ours.name) is ours


def test_those_who_only_write_say_that_they_cannot_score() -> None:
    others: list[Target] = [EndpointTarget("http://x", Endpoint("http://x", "m")), PredictionsTarget("f", {})]
    for target in others:
        with pytest.raises(UserError, match="score"):
            next(target.score(requests_of(), ["a"]))


@pytest.mark.parametrize(
    ("name", "text"),
    [("runs/nothing/here", "nothing"), ("http://localhost:1", "name of a model"), ("FOLDER/supprt", "did you mean")],
)
def test_what_is_not_there_is_told_in_a_sentence(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "support").mkdir()
    with pytest.raises(UserError) as error:
        open_target(name.replace("FOLDER", str(tmp_path))).load()
    assert text in f"{error.value.what} {error.value.where} {error.value.next_step}"
