"""The whole job on a tiny Llama 3: every file of the contract, reruns, interruptions, and each stage by itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from reviews import vote

from patience import HANG
from tuneloop.advice.recommendation import AdviceInput, advise
from tuneloop.cli.main import main
from tuneloop.cli.schema import RECORDS, schema_of
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json, read_jsonl, read_yaml
from tuneloop.core.ui import reporting
from tuneloop.evaluation.review.items import append_vote, make_review, read_systems
from tuneloop.pipeline.advise import keep_advice
from tuneloop.pipeline.context import default_folder
from tuneloop.pipeline.run import run_job
from tuneloop.recipe import make_recipe

pytestmark = pytest.mark.slow

THINGS = ["order", "parcel", "invoice", "box", "lamp", "kettle", "spoon", "voucher", "login", "account"]
PLACES = ["Oslo", "Bergen", "Turin", "Ghent", "Porto", "Graz", "Lyon", "Riga", "Cork", "Delft"]
ASKED = ["where is it", "money back please", "thank you"]
COUNT = 60


def write_examples(path: Path) -> Path:
    with path.open("w") as file:
        for i in range(COUNT):
            thing, folder = THINGS[i % 10], PLACES[(i * 7 + i // 10) % 10]
            text = f"Case {i}: the {thing} sent to {folder} on day {i * 13 % 29}, {ASKED[i % 3]} {i * 37 % 101}?"
            label = ["late", "refund", "praise"][i % 3]
            file.write(json.dumps({"text": text, "label": label, "note": f"{thing} in {folder}"}) + "\n")
        file.write("not json\n")
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_examples(folder / "cases.jsonl")
    return folder


def recipe_values(path: Path, model: Path, out: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "cases",
        "model": str(model),
        "output_dir": str(path / out),
        "data": {"sources": [str(path / "cases.jsonl")]},
        "train": {"epochs": 2, "learning_rate": 0.01, "rank": 4},
        "evaluate": {"bootstrap": 200},
        "track": {"report_to": "none"},
        **more,
    }


GENERATION = {
    "instruction": "Write the card.",
    "input": "{text}",
    "output": "Label: {label}\nNote: {note}",
    "split": {"stratify": "label", "test": 0.25},  # enough rows for the field's values to repeat
}


def run_in(values: dict[str, Any], *overrides: str) -> list[str]:
    """Run the main job in this process; returns what it said."""
    said: list[str] = []
    with reporting(say=said.append):
        run_job(make_recipe(values, list(overrides)))
    return said


@pytest.fixture(scope="module")
def classified(path: Path, tiny_llama: Path, cli_environment: dict[str, str]) -> dict[str, Any]:
    """A finished classification job, by the command line with `--json`: its values, folder, output."""
    import yaml

    values = recipe_values(path, tiny_llama, "classified")
    (path / "classified.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop", "run", "classified.yaml", "--json"],
        cwd=path, env=cli_environment, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {"values": values, "folder": path / "classified", "stdout": done.stdout, "stderr": done.stderr}


@pytest.fixture(scope="module")
def generated(path: Path, tiny_llama: Path) -> dict[str, Any]:
    """A finished generation job with a scored field."""
    values = recipe_values(
        path, tiny_llama, "generated",
        evaluate={"fields": {"label": r"Label:\s*(\w+)"}, "max_new_tokens": 12, "bootstrap": 200},
    )  # fmt: skip
    values["data"] |= GENERATION
    said = run_in(values)
    return {"values": values, "folder": path / "generated", "said": said}


@pytest.fixture(scope="module")
def limited_run(path: Path, tiny_llama: Path) -> Path:
    """A finished job with a limit on its time, and a tracker."""
    values = recipe_values(path, tiny_llama, "limited", max_minutes=2, track={"report_to": "tensorboard"})
    run_in(values)
    return path / "limited"


@pytest.fixture
def copied(classified: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The finished classification job in a folder of its own."""
    shutil.copytree(classified["folder"], tmp_path / "run")
    return {"values": classified["values"] | {"output_dir": str(tmp_path / "run")}, "folder": tmp_path / "run"}


# --- the files --------------------------------------------------------------------------------------


def test_json_prints_exactly_one_object(classified: dict[str, Any]) -> None:
    lines = classified["stdout"].strip().splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert found["path"] == str(classified["folder"])
    for name in ("dataset", "plan", "run", "eval"):
        assert found[name]["version"] == 1, name
    assert re.search(r"✓ evaluate +accuracy", classified["stderr"])


@pytest.mark.parametrize("job", ["classified", "generated"])
def test_every_file_of_the_contract_is_there(job: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(job)["folder"]
    for name in (
        "config.yaml", "environment.json", "plan.json", "run.json", "metrics.jsonl", "eval.json", "samples.jsonl", "report.html",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/tokenizer.json",
        "dataset/dataset.json", "dataset/train.jsonl", "dataset/val.jsonl", "dataset/test.jsonl",
        "dataset/rejects.jsonl", "dataset/repairs.jsonl", "baselines/baselines.json",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "checkpoints").exists(), "they have served"
    for manifest in ("environment.json", "plan.json", "run.json", "eval.json", "dataset/dataset.json"):
        assert read_json(folder / manifest)["version"] == 1
    assert read_yaml(folder / "config.yaml")["version"] == 1


@pytest.mark.parametrize("job", ["classified", "generated"])
def test_the_manifests_have_their_keys(job: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(job)["folder"]
    data = read_json(folder / "dataset" / "dataset.json")
    assert {"id", "task", "sources", "config", "counts", "rejected", "repaired", "splits", "checks"} <= set(data)
    assert {"read", "kept", "rejected", "train", "val", "test"} <= set(data["counts"])
    assert data["id"].startswith("cases-") and len(data["id"]) == len("cases-") + 12
    plan = read_json(folder / "plan.json")
    assert {"model", "method", "gpu", "gpus", "fits", "memory", "time", "cost", "assumptions", "alternatives"} <= set(
        plan
    )
    run = read_json(folder / "run.json")
    assert run["dataset"] == data["id"] and run["steps"] <= run["total_steps"] == plan["steps"]
    assert run["trainable_parameters"] == plan["trainable_parameters"]
    found = read_json(folder / "eval.json")
    assert {"model", "dataset", "split", "n", "metrics", "baselines", "comparisons"} <= set(found)
    assert found["dataset"] == data["id"] and found["split"] == "test"
    for metric in found["metrics"].values():
        assert {"value", "low", "high"} <= set(metric)
    for comparison in found["comparisons"]:
        assert {"a", "b", "metric", "delta", "low", "high", "p", "verdict"} <= set(comparison)


RECORD_OF = {
    "environment.json": "environment", "plan.json": "plan", "run.json": "run", "schedule.json": "schedule",
    "time.json": "time", "tracking.json": "tracking", "tracking-tensorboard.json": "tracking", "tuneloop.json": "trained",
    "eval.json": "evaluation", "samples.jsonl": "sample", "baselines.json": "baselines", "dataset.json": "dataset",
    "train.jsonl": "row", "val.jsonl": "row", "test.jsonl": "row", "rejects.jsonl": "reject", "repairs.jsonl": "repair",
    "duplicates.jsonl": "duplicate", "label_errors.jsonl": "label-error", "flagged.jsonl": "flagged",
    "gate.json": "gate", "review.json": "review", "items.jsonl": "review-item", "votes.jsonl": "vote", "advise.json": "advice",
}  # fmt: skip
LINES = {"loss": "step", "val_loss": "validation", "event": "event", "finding": "finding"}  # of metrics.jsonl
OF_OTHERS = ("tokenizer.json", "tokenizer_config.json", "adapter_config.json")  # whose form Transformers and PEFT fix


@pytest.fixture
def judged(copied: dict[str, Any], tmp_path: Path) -> Path:
    """The finished classification job with all that is said about it: by a gate, by people, by `advise`."""
    folder, suite = copied["folder"], str(tmp_path / "suite.yaml")
    assert main(["gate", "--init", str(folder), "--suite", suite]) == 0
    assert main(["gate", str(folder), "--against", f"{folder}:few-shot", "--suite", suite, "--no-model"]) in (0, 1, 3)
    review = make_review(
        read_systems([f"{folder}:few-shot", str(folder)]), folder / "review", mode="pairwise", share=0.2
    )
    append_vote(review.votes_path, vote(review.items[0].id, "ann", winner="tuned", tags=("tuned: clear",), seconds=2.5))
    advice = advise(
        AdviceInput(rows=200, queries_per_day=1000, baseline_prompt_tokens=900, prompt_tokens=90, answer_tokens=9)
    )
    keep_advice(folder / "advice", "abc", advice.record())
    return folder


def test_every_file_of_a_finished_run_is_what_its_schema_says(judged: Path, generated: dict[str, Any],
                                                              limited_run: Path) -> None:  # fmt: skip
    """A file that a stage begins to write fails here until it has a record."""
    checked: set[str] = set()
    validators = {name: jsonschema.Draft202012Validator(schema_of(name)) for name in RECORDS}
    for folder in (judged, generated["folder"], limited_run):
        for path in sorted(folder.rglob("*.json*")):
            if path.name in OF_OTHERS:
                continue
            values = read_jsonl(path) if path.suffix == ".jsonl" else [read_json(path)]
            for value in values:
                if path.name == "metrics.jsonl":
                    name = next(kind for key, kind in LINES.items() if key in value)
                else:
                    name = RECORD_OF[path.name]
                problem = jsonschema.exceptions.best_match(validators[name].iter_errors(value))
                assert problem is None, (path, problem.json_path, problem.message)
                checked.add(name)
    of_data = {"repair", "duplicate", "label-error", "flagged"}  # `cli/test_schemas.py` has lines of these
    assert checked >= {*RECORD_OF.values(), "step", "validation"} - of_data, "a file that no run here has written"


def test_nothing_is_lost(classified: dict[str, Any]) -> None:
    folder = classified["folder"] / "dataset"
    kept = [row["meta"]["line"] for split in ("train", "val", "test") for row in read_jsonl(folder / f"{split}.jsonl")]
    rejected = read_jsonl(folder / "rejects.jsonl")
    assert sorted(kept + [reject["line"] for reject in rejected]) == list(range(1, COUNT + 2))
    assert [(r["line"], r["reason"]) for r in rejected if r["line"] == COUNT + 1] == [(COUNT + 1, "broken_json")]


def test_classification_is_compared_with_prompts_and_cheap_alternatives(classified: dict[str, Any]) -> None:
    found = read_json(classified["folder"] / "eval.json")
    assert found["task"] == "classification"
    assert {"accuracy", "macro_f1", "micro_f1", "weighted_f1", "balanced_accuracy"} <= set(found["metrics"])
    wanted = {"zero-shot", "zero-shot calibrated", "few-shot", "few-shot calibrated", "tf-idf + logistic regression"}
    assert wanted <= set(found["baselines"]) == set(found["costs"]) - {"tuned"}
    assert {c["a"] for c in found["comparisons"]} == set(found["baselines"])
    samples = read_jsonl(classified["folder"] / "samples.jsonl")
    test_ids = [row["id"] for row in read_jsonl(classified["folder"] / "dataset" / "test.jsonl")]
    assert sorted(sample["id"] for sample in samples) == sorted(test_ids)
    assert all(set(sample["baselines"]) == set(found["baselines"]) for sample in samples)


def test_generation_is_scored_as_text_and_by_field(generated: dict[str, Any]) -> None:
    found = read_json(generated["folder"] / "eval.json")
    assert found["task"] == "generation"
    assert {"bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "token_f1", "perplexity"} <= set(
        found["metrics"]
    )
    assert "label.accuracy" in found["metrics"]
    plain = {"zero-shot", "few-shot", "majority class", "tf-idf + logistic regression"}  # a classifier for each field
    assert set(found["baselines"]) - {"MiniLM + logistic regression"} == plain
    page = (generated["folder"] / "report.html").read_text(encoding="utf-8")
    assert "cases" in page and not re.search(r"""(src|href)=["']https?://""", page), "the report loads nothing"


def test_training_learned_something(classified: dict[str, Any]) -> None:
    run = read_json(classified["folder"] / "run.json")
    assert run["best_val_loss"] < run["first_val_loss"]
    steps = [record for record in read_jsonl(classified["folder"] / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, run["steps"] + 1))


# --- reruns -----------------------------------------------------------------------------------------


def test_a_rerun_does_nothing_anew(copied: dict[str, Any]) -> None:
    stay = [
        p
        for p in copied["folder"].rglob("*")
        if p.is_file() and p.name not in ("report.html", "config.yaml", "environment.json", ".lock")
    ]
    before = {path: path.stat().st_mtime_ns for path in stay}
    said = run_in(copied["values"])
    assert {path: path.stat().st_mtime_ns for path in stay} == before
    for stage in ("prepare", "baselines", "train", "evaluate"):
        assert any(line.startswith(stage) and "already done" in line for line in said), stage


def test_other_evaluation_settings_do_only_the_evaluation_again(copied: dict[str, Any]) -> None:
    adapter = copied["folder"] / "adapter" / "adapter_model.safetensors"
    trained, n = adapter.stat().st_mtime_ns, read_json(copied["folder"] / "eval.json")["n"]
    said = run_in(copied["values"], "evaluate.limit=3", "baselines.few_shot=0", "track.tags=short,first")
    assert any(line.startswith("prepare   already done") for line in said)
    assert any(line.startswith("train     already done") for line in said)
    assert not any("already done" in line for line in said if line.startswith(("baseline", "evaluate")))
    assert adapter.stat().st_mtime_ns == trained
    assert read_json(copied["folder"] / "run.json")["tags"] == ["short", "first"]
    found = read_json(copied["folder"] / "eval.json")
    assert found["n"] == 3 < n
    assert "few-shot" not in found["baselines"]


def test_consistency_asks_the_tuned_model_and_baselines_stay(copied: dict[str, Any]) -> None:
    said = run_in(copied["values"], "evaluate.consistency=4", "evaluate.consistency_rows=3")
    assert any(line.startswith("baselines already done") for line in said)
    part = read_json(copied["folder"] / "eval.json")["consistency"]
    assert part["rows"] == part["asked"]["as it is"] == 3
    assert {"agreement", "always_right"} == set(part["values"])
    assert all(0 <= measure["value"] <= 1 for measure in part["values"].values())
    assert any(line.startswith("consistency 3 rows are put in several ways: 12 questions") for line in said)
    assert 'id="consistency"' in (copied["folder"] / "report.html").read_text()
    assert any("evaluate  already done" in line for line in run_in(
        copied["values"], "evaluate.consistency=4", "evaluate.consistency_rows=3"
    ))  # fmt: skip


def test_consistency_of_written_answers_is_reproducible(
    generated: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("evaluate", str(generated["folder"]), "consistency=4", "consistency_rows=3", "limit=4")
    first, again = (one_object(capsys, *arguments, "-o", str(tmp_path / name)) for name in ("a", "b"))
    part = first["consistency"]
    assert part["values"] == again["consistency"]["values"]
    answers = [(tmp_path / name / "consistency.jsonl").read_text() for name in ("a", "b")]
    assert answers[0] == answers[1] and len(answers[0].splitlines()) == 12


def test_a_damaged_manifest_is_made_again(copied: dict[str, Any]) -> None:
    (copied["folder"] / "eval.json").write_text("{")
    run_in(copied["values"])
    assert read_json(copied["folder"] / "eval.json")["n"] > 0


@pytest.mark.parametrize("setting", ["train.rank=8", "seed=1", "data.split.test=0.2", "train.learning_rate=0.02"])
def test_other_training_settings_in_the_same_folder_are_refused(copied: dict[str, Any], setting: str) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(UserError, match=re.escape(key)) as caught:
        run_in(copied["values"], setting)
    assert value in caught.value.what and "output_dir=" in caught.value.next_step


def test_a_prepared_data_set_has_a_default_folder_too(tmp_path: Path) -> None:
    data_set = tmp_path / "set"
    data_set.mkdir()
    recipe = make_recipe({"name": "n", "data": {"sources": [str(data_set)]}})
    found = []
    for splits in ("one", "other"):
        (data_set / "dataset.json").write_text(splits)
        (data_set / "train.jsonl").write_text('{"messages": []}\n')
        found.append(default_folder(recipe))
    assert found[0] != found[1] and found[1] == default_folder(recipe)


def test_other_data_make_another_default_folder(path: Path, tiny_llama: Path, tmp_path: Path) -> None:
    values = recipe_values(path, tiny_llama, "x") | {"output_dir": None}
    first = default_folder(make_recipe(values))
    assert first == default_folder(make_recipe(values, ["evaluate.limit=5", "plan.usd_per_hour=3"]))
    assert first != default_folder(make_recipe(values, ["epochs=9"]))
    other = tmp_path / "cases.jsonl"
    other.write_text((path / "cases.jsonl").read_text().replace("Oslo", "Rome"))
    assert first != default_folder(make_recipe(values, [f"data.sources={other}"]))


# --- interruptions ----------------------------------------------------------------------------------


def test_killed_while_training_held_against_others_and_gone_on_with(
    path: Path, tiny_llama: Path, tmp_path: Path, cli_environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [str(path / "cases.jsonl"), f"model={tiny_llama}", "epochs=12", "train.rank=4",
                "train.checkpoint_seconds=0", "train.patience=99", "train.learning_rate=0.001"]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", *settings, "--out", str(whole), "-q"]) == 0
    process = subprocess.Popen([sys.executable, "-m", "tuneloop", "train", *settings, "--out", str(cut)], env=cli_environment,
                               cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        metrics, deadline = cut / "metrics.jsonl", time.monotonic() + HANG
        while not (metrics.is_file() and metrics.read_text().count('"grad_norm"') >= 5):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        capsys.readouterr()
        assert main(["train", *settings, "--out", str(cut), "-q"]) == 2  # two at once in one folder
        assert f"pid {process.pid}" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
    assert not (cut / "run.json").exists() and list((cut / "checkpoints").glob("step-*.pt"))
    assert main(["train", *settings, "--out", str(cut)]) == 0
    assert "continued from the checkpoint at step" in capsys.readouterr().err
    item, other = read_json(whole / "run.json"), read_json(cut / "run.json")
    assert other["resumed_at"] > 0
    for key in ("steps", "best_step", "best_val_loss", "first_val_loss", "adapter_hash", "tokens"):
        assert item[key] == other[key], key
    losses = [
        [
            (r["step"], r.get("loss"), r.get("val_loss"))
            for r in read_jsonl(f / "metrics.jsonl")
            if r.get("event") != "busy"  # depends on what else the machine does
        ]
        for f in (whole, cut)
    ]
    assert losses[0] == losses[1]


def test_a_folder_held_by_another_process_is_refused(copied: dict[str, Any]) -> None:
    with lock_folder(copied["folder"]), pytest.raises(UserError, match=f"pid {os.getpid()}"):
        run_in(copied["values"])


# --- stages alone, by the command line ------------------------------------------------------------


def one_object(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    """Run a command with `--json`; returns its object."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == status
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1
    found: dict[str, Any] = json.loads(lines[0])
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prepare_plan_and_train_alone(
    path: Path, tiny_llama: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_llama)
    data = one_object(capsys, "prepare", str(path / "cases.jsonl"), "-m", model, "split.test=0.2", "-o", "set")
    assert data["path"] == "set" and data["counts"]["test"] == pytest.approx(COUNT / 5, abs=2)
    assert one_object(capsys, "prepare", str(path / "cases.jsonl"), "-m", model, "split.test=0.2", "-o", "set") == data
    plan = one_object(capsys, "plan", "set", "-m", model, "epochs=1", "-o", "plans")
    assert plan["fits"] and plan == read_json(here / "plans" / "plan.json")
    run = one_object(capsys, "train", "set", "-m", model, "epochs=1", "-o", "run")
    assert run["dataset"] == data["id"] and (here / "run" / "adapter" / "adapter_config.json").is_file()
    assert not (here / "run" / "eval.json").exists()
    found = one_object(capsys, "evaluate", "run", "bootstrap=200")
    assert found["n"] == data["counts"]["test"] and found["name"] == "tuned"
    assert (here / "run" / "eval.json").is_file()


def test_a_job_that_begins_with_a_prepared_data_set(
    classified: dict[str, Any], tiny_llama: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(classified["folder"] / "dataset")
    found = one_object(
        capsys, "run", data, f"model={tiny_llama}", "epochs=1", "output_dir=run", "report_to=none", "evaluate.bootstrap=100",
        "baselines={zero_shot: true, few_shot: 0, classical: false}",
    )  # fmt: skip
    assert found["dataset"] == read_json(classified["folder"] / "dataset" / "dataset.json")
    assert found["run"]["dataset"] == found["eval"]["dataset"] == found["dataset"]["id"]
    assert not (here / "run" / "dataset").exists()
    assert one_object(capsys, "evaluate", "run", "bootstrap=100")["metrics"] == found["eval"]["metrics"]


def test_prepare_shows_what_is_learned(
    path: Path, tiny_llama: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(path / "cases.jsonl"), "-m", str(tiny_llama), "--show", "2", "-q"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"\[\[(late|refund|praise)<\|eot_id\|>\]\]", out)) == 2
    assert (here / "datasets" / "cases" / "dataset.json").is_file()


def test_plan_that_does_not_fit_says_no(
    classified: dict[str, Any],
    tiny_llama: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tuneloop.core import machine

    monkeypatch.setattr(machine, "memory_capacity", lambda: 0.01)
    data = str(classified["folder"] / "dataset")
    plan = one_object(capsys, "plan", data, "-m", str(tiny_llama), status=1)
    assert plan["fits"] is False and plan["alternatives"]
    assert main(["train", data, "-m", str(tiny_llama), "-o", "run"]) == 2
    assert "needs about" in capsys.readouterr().err
    assert not (here / "run" / "run.json").exists()


def test_evaluate_a_run_on_another_split_and_a_model_alone(
    copied: dict[str, Any], tiny_llama: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(copied["folder"])
    validation = one_object(capsys, "evaluate", run, "--split", "val", "limit=4", "bootstrap=200")
    assert (validation["split"], validation["n"]) == ("val", 4)
    assert Path(validation["path"]) == copied["folder"] / "eval-val"
    untouched = one_object(
        capsys, "evaluate", str(tiny_llama), "-d", f"{run}/dataset", "--few-shot", "2", "bootstrap=200", "-o", "e"
    )
    assert (untouched["name"], untouched["split"]) == ("few-shot", "test")
    again = one_object(capsys, "evaluate", run, "bootstrap=200", "-o", "tuned-again")
    first = read_json(copied["folder"] / "eval.json")
    assert again["metrics"] == first["metrics"], "the saved adapter answers as it did after training"
    assert again["baselines"] == first["baselines"] and set(again["costs"]) == set(first["costs"])
    compared = one_object(capsys, "compare", "e", run, "--out", "both")
    assert {c["verdict"] for c in compared["comparisons"]} and (here / "both" / "eval.json").is_file()
    assert {c["b"] for c in one_object(capsys, "compare", run, f"{run}:zero-shot")["comparisons"]} == {
        f"{run}:zero-shot"
    }


def test_report_alone(copied: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    page = copied["folder"] / "report.html"
    page.unlink()
    found = one_object(capsys, "compare", str(copied["folder"]))
    assert found["report"] == str(page) and page.is_file() and found["run"]["status"] == "finished"


def test_init_writes_a_recipe_that_runs_as_it_is(
    path: Path, tiny_llama: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = one_object(capsys, "init", str(path / "cases.jsonl"), "-o", "my.yaml")
    assert found["format"] == "text_label"
    one_object(capsys, "prepare", "my.yaml", "-m", str(tiny_llama), "-o", "set")
    assert read_json(here / "set" / "dataset.json")["task"] == "classification"


def test_schema_and_doctor(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "train" in one_object(capsys, "schema")["properties"]
    assert main(["schema", "--keys"]) == 0
    assert "train.learning_rate" in capsys.readouterr().out
    capsys.readouterr()
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["ok"] else 1)
    assert {"torch", "memory", "disk"} <= {finding["name"] for finding in found["findings"]}


@pytest.mark.parametrize("job", ["classified", "generated"])
def test_a_finished_run_is_asked_as_it_was_trained_and_evaluated(
    job: str, path: Path, request: pytest.FixtureRequest
) -> None:
    from tuneloop.data.dataset import load_dataset
    from tuneloop.data.task import TaskPrompt
    from tuneloop.inference.request import Request
    from tuneloop.pipeline.answers.asking import open_with_task
    from tuneloop.pipeline.answers.predictions import Asker, Options

    folder = request.getfixturevalue(job)["folder"]
    opened, dataset = open_with_task(str(folder)), load_dataset(folder / "dataset")
    target = opened.local
    assert target is not None
    lines = (path / "cases.jsonl").read_text().splitlines()

    def raw(row: Any) -> dict[str, Any]:
        record = json.loads(lines[row.meta["line"] - 1])
        return {"text": record["text"]}

    asker = Asker(opened, Options(), [raw(row) for row in dataset.test])
    for row in dataset.train:
        made, rendered = asker.read(raw(row)), target.model.template.render(row.messages)
        assert isinstance(made, TaskPrompt)
        shown = target.rendered(asker.request(made))
        assert isinstance(shown, Request) and shown.ids == rendered.ids[: rendered.mask.index(1)]
    with reporting(progress=lambda *a, **k: None):
        answers = asker.answers([raw(row) for row in dataset.test])
    evaluated = {sample["id"]: sample["prediction"] for sample in read_jsonl(folder / "samples.jsonl")}
    asked = {row.id: answer.text for row, answer in zip(dataset.test, answers, strict=True)}
    assert asked and asked == {id: evaluated[id] for id in asked}
