"""A run on Tinker: losses, order, schedule and stopping are those of a run here; faults, and a process that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from patience import HANG
from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.data.dataset import load_dataset
from tuneloop.deploy import on_tinker
from tuneloop.models.load import load_model
from tuneloop.models.methods.lora import load_adapter
from tuneloop.pipeline.recipes import recipe_of
from tuneloop.training.loop import Trained, train
from tuneloop.training.loss import mean_loss
from tuneloop.training.rows import training_rows

pytest.importorskip("tinker", reason="needs Tinker's client: pip install 'tuneloop[tinker]'")

from tinker_service import BASE, KEY, Service, serving

OUT = Path("runs/there")
SETTINGS = [
    "train.rank=4", "train.learning_rate=2e-3", "train.epochs=2", "train.evaluations=3", "train.rows_per_step=7",
    "train.reasoning_weight=1", "train.weight_decay=0.1", "train.max_grad_norm=0.5", "train.lora_plus=1",
]  # fmt: skip
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared data set."""
    folder = tmp_path_factory.mktemp("tinker")
    things = ["parcel", "invoice", "refund", "courier", "receipt", "label", "address", "voucher"]
    rows = [
        {
            "text": f"the {things[i % 8]} and the {things[(3 * i + i // 8) % 8]} of order {i * 7919} " * (1 + i % 3),
            "label": "late" if i % 2 else "lost",
        }
        for i in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [f"model={tiny_llama}", "split.test=0.1", "--quiet"]
    assert main(["prepare", str(folder / "rows.jsonl"), "-o", str(folder / "data"), *more]) == 0
    return folder


@pytest.fixture
def service(place: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(place / "data")
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    with serving(Service(tiny_llama, tmp_path / "exports")) as one:
        monkeypatch.setenv("TINKER_BASE_URL", one.url)
        yield one


def words(service: Service, *more: str, out: Path = OUT, on: str = f"tinker:{BASE}") -> list[str]:
    return ["run", "data", f"model={service.base}", f"output_dir={out}", *SETTINGS, "--on", on, "--quiet", *more]


@dataclass
class Local:
    """What a run of the same rows on this machine came to."""

    result: Trained
    lines: list[dict[str, Any]]


@pytest.fixture(scope="module")
def here(place: Path, tiny_llama: Path) -> Local:
    data, recipe = load_dataset(place / "data"), recipe_of(str(place / "data"), SETTINGS)
    model = load_model(str(tiny_llama), dtype="float32")
    result = train(model, data.train, data.val, recipe.train, place / "here", seed=recipe.seed)
    return Local(result, read_jsonl(place / "here" / "metrics.jsonl"))


def compare(folder: Path, here: Local) -> None:
    """Losses within rounding, the rest exactly."""
    there = read_jsonl(folder / "metrics.jsonl")
    for name in ("step", "learning_rate", "rows", "epoch", "tokens", "best"):
        assert [line.get(name) for line in there] == [line.get(name) for line in here.lines], name
    losses = [[line.get("loss") or line["val_loss"] for line in lines] for lines in (there, here.lines)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_losses_are_those_of_a_run_here(service: Service, here: Local) -> None:
    assert main(words(service, "--yes")) == 0
    compare(OUT, here)
    data, record, evaluation = load_dataset("data"), read_json(OUT / "tinker.json"), read_json(OUT / "eval.json")
    mine = here.result
    assert (record["step"], record["best_step"], record["stopped"]) == (mine.steps, mine.best_step, mine.stopped)
    assert evaluation["name"] == "tuned" and evaluation["model"] == record["model"]
    assert len(service.chats) == len(data.test)
    tuned, config = load_model(str(service.base), dtype="float32"), recipe_of("data", SETTINGS).train
    load_adapter(tuned, OUT / "adapter")
    loss, _ = mean_loss(tuned, training_rows(data.val, tuned.template, config), config)
    assert loss == pytest.approx(record["best_val_loss"], rel=1e-4), "the adapter here is the best one there"
    assert main(["gate", str(OUT), "--against", f"{OUT}:majority class", "--margin", "90", "--json"]) in (0, 1, 3)
    assert KEY.encode() not in b"".join(path.read_bytes() for path in OUT.rglob("*") if path.is_file())
    calls = list(service.calls)
    assert main(words(service)) == 0 and service.calls == calls, "nothing is left to send"


def test_lost_replies_and_refused_connections_change_no_loss(service: Service, here: Local) -> None:
    """The official client sends a request again under its number; one that had been computed is not computed twice."""
    service.faults = {
        "forward_backward": [None, "cut", None, (503, "busy")],
        "optim_step": ["cut", None, (429, "slower")],
        "save_weights": ["cut"],
        "retrieve_future": [None, "cut", (500, "lost")],
    }
    assert main(words(service, "--yes")) == 0
    assert not any(service.faults.values())
    compare(OUT, here)


def test_a_process_that_was_killed_continues_with_the_next_batch(
    service: Service, here: Local, cli_environment: dict[str, str]
) -> None:
    steps, reached, ended = count(1), threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if path == "optim_step" and next(steps) == 8:
            reached.set()
            ended.wait(HANG)

    service.before = hold
    more = ["train.checkpoint_steps=3", "train.checkpoint_seconds=0"]
    access = {"TINKER_API_KEY": KEY, "TINKER_BASE_URL": service.url}
    command = [sys.executable, "-m", "tuneloop", *words(service, "--yes", *more)]
    process = subprocess.Popen(command, env={**cli_environment, **access})
    try:
        assert reached.wait(HANG)
    finally:
        process.kill()
        process.wait()
        ended.set()
    before = read_json(OUT / "tinker.json")
    assert before["step"] == 6 and before["checkpoint"] in service.saved
    service.before = lambda path: None
    made = service.calls.count("create_model")
    assert main(words(service, *more)) == 0, "without another yes"
    assert service.calls.count("create_model") == made and service.calls.count("load_weights") == 1
    compare(OUT, here)


def test_nothing_is_sent_without_a_yes(service: Service, capsys: Capture) -> None:
    assert main(words(service)) == 0
    text = "".join(capsys.readouterr())
    assert "14 steps" in text and "no price is known" in text and "Nothing was sent" in text and not service.calls
    assert main(words(service, "--yes", "--max-usd", "1")) == 2
    assert "--max-usd" in capsys.readouterr().err and not service.calls


@pytest.mark.parametrize(
    ("on", "more", "message"),
    [
        ("tinker", [], "--on tinker:NAME"),
        (f"tinker:{BASE}", ["train.dora=true"], "train.dora=True"),
        (f"tinker:{BASE}", ["train.lora_plus=4"], "train.lora_plus=4.0"),
        (f"tinker:{BASE}", ["train.targets=q_proj"], "train.targets"),
        (f"tinker:{BASE}", ["--cancel"], "no job to end"),
    ],
)
def test_what_it_can_not_do_is_refused_before_anything_is_sent(
    service: Service, on: str, more: list[str], message: str, capsys: Capture
) -> None:
    assert main(words(service, "--yes", *more, on=on)) == 2
    assert message in capsys.readouterr().err and not service.calls


@pytest.mark.parametrize(
    ("on", "message"),
    [("tinker:acme/tinny-llama", f"did you mean {BASE}"), ("tinker:acme/short-llama", "is longer than")],
)
def test_a_base_that_does_not_do_is_refused_before_data_are_sent(
    service: Service, on: str, message: str, capsys: Capture
) -> None:
    assert main(words(service, "--yes", on=on)) == 2
    assert message in capsys.readouterr().err and "create_model" not in service.calls


@pytest.mark.parametrize(("key", "message"), [("tml-wrong-key", "401"), ("sk-other", "tml-"), ("", "is not set")])
def test_a_refused_key_is_said_and_not_shown(
    service: Service, key: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", key)
    assert main(words(service, "--yes")) == 2
    text = "".join(capsys.readouterr())
    assert message in text and (not key or key not in text)
    assert not (OUT / "tinker.json").exists()


def test_a_missing_client_names_the_line_that_installs_it(
    service: Service, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_tinker, "find_spec", lambda name: None)
    assert main(words(service, "--yes")) == 2
    assert "pip install 'tuneloop[tinker]'" in capsys.readouterr().err and not service.calls


def test_an_address_where_nothing_answers_is_said_at_once(
    service: Service, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(on_tinker, "Service", partial(on_tinker.Service, pause=0.01))
    assert main(words(service, "--yes")) == 2
    error = capsys.readouterr().err
    assert "Tinker does not answer" in error and "where: http://127.0.0.1:9" in error
    assert not (OUT / "tinker.json").exists()


def test_a_checkpoint_that_the_service_dropped_is_said(service: Service, capsys: Capture) -> None:
    service.faults = {"save_weights_for_sampler": [(403, "no room")]}
    assert main(words(service, "--yes")) == 2
    service.saved.clear()
    assert main(words(service)) == 2
    assert "no checkpoint" in (text := capsys.readouterr().err) and "output_dir=FOLDER starts again" in text
