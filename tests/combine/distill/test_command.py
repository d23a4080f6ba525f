"""A student learns a teacher's answers; what was asked is not asked again; it is compared with itself without a teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_day import by_day
from safetensors.torch import load_file
from six_layers import write_six_layers

from tuneloop.cli.main import main
from tuneloop.combine.distill import answers as distil_answers
from tuneloop.combine.distill import command as module
from tuneloop.combine.distill.answers import DistilJob
from tuneloop.combine.options import DistilOptions
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.recipe import Recipe
from tuneloop.records.distillation import DistillationRecord, DistilledFigures, ModelCost
from tuneloop.records.record import write_record
from tuneloop.records.run import RunManifest

Said = pytest.CaptureFixture[str]
TRAIN = ["train.epochs=1", "train.rows_per_step=8", "train.evaluations=1"]


def told(said: Said, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == status, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


def last_words(teacher: ModelCost, student: ModelCost) -> str:
    figures = DistilledFigures(
        metric="accuracy", n=9, teacher=0.9, student=0.8, teacher_cost=teacher, student_cost=student
    )
    record = DistillationRecord(
        teacher="big", teacher_key="k", student="small", dataset="d", asked=9, kept=9, results=figures
    )
    return module.sentences(record)[-1]


def test_the_last_line_says_what_1000_answers_cost_where_both_prices_are_known() -> None:
    student = ModelCost(parameters=139_000_000, rows_per_second=8.0, usd_per_1000=0.0017, usd_per_hour=0.05)
    here = ModelCost(parameters=1_777_000_000, rows_per_second=1.0, usd_per_1000=0.014, usd_per_hour=0.05)
    text = "It has 139M parameters instead of 1,777M, and answers 8.0 times as many rows a second: "
    said = text + "1,000 answers cost $0.0017 instead of $0.014, this machine at $0.05 an hour"
    assert last_words(here, student) == said
    server = ModelCost(rows_per_second=1.0, usd_per_1000=1.2)
    assert last_words(server, student).endswith(
        "1,000 answers cost $0.0017 instead of $1.20, this machine at $0.05 an hour"
    )


def test_the_last_line_says_how_long_an_answer_takes_where_a_price_is_unknown() -> None:
    student = ModelCost(rows_per_second=8.0, usd_per_1000=0.0017, usd_per_hour=0.05)
    said = "It answers 16.0 times as many rows a second: 125 ms an answer instead of 2 s"
    assert last_words(ModelCost(rows_per_second=0.5), student) == said


@pytest.fixture
def teacher(make_tuned: Callable[..., Path]) -> str:
    """A run for tickets with three labels; its rows are in `DIR/dataset`."""
    return str(make_tuned(name="teacher", data={"split": {"val": 0.1, "test": 0.3}, "instruction": "Which queue?"}))


@pytest.mark.slow
def test_a_student_is_made_of_the_tuned_teacher_without_some_layers(
    make_tuned: Callable[..., Path], capsys: Said, tiny_llama: Path, tmp_path: Path
) -> None:
    base = write_six_layers(tmp_path / "six", tiny_llama)
    teacher = str(make_tuned(name="teacher", base=base, data={"split": {"val": 0.1, "test": 0.3}}))
    command = ["distill", teacher, "--layers", "4", "--dataset", f"{teacher}/dataset", "--out", "student", *TRAIN]
    found = told(capsys, *command, "--level", "logits", "--no-control")
    assert found["level"] == "logits" and "divergence" in read_jsonl(Path("student/metrics.jsonl"))[1]
    assert found["pruned"]["layers"] == 4 and found["pruned"]["of"] == 6 and "control" not in found["results"]
    student = read_json(Path("student/distill/student/config.json"))
    assert student["num_hidden_layers"] == 4 and read_json(Path("student/run.json"))["weights"] == "model"
    made = load_file("student/distill/student/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    plain = load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    adapter = load_file(f"{teacher}/adapter/adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    assert torch.allclose(made, plain + 2 * adapter[f"{stem}B.weight"] @ adapter[f"{stem}A.weight"], atol=1e-5)
    assert main([*command[:3], "9", *command[4:]]) == 2
    assert "can't be made of a model of 6" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_are_kept_filtered_and_compared_with_a_control(
    teacher: str, capsys: Said, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["distill", teacher, str(tiny_llama), "--dataset", f"{teacher}/dataset", "--out", "student", *TRAIN]
    found = told(capsys, *command)
    rows = {row["id"]: row for row in read_jsonl(Path(f"{teacher}/dataset/train.jsonl"))}
    (file,) = Path("student/distill").glob("answers-*.jsonl")
    answers = {line["id"]: line["text"] for line in read_jsonl(file)}
    taught = read_jsonl(Path("student/distill/dataset/train.jsonl"))
    assert found["asked"] == len(rows) == len(answers) and found["kept"] == len(taught) > 0
    for row in taught:
        assert row["messages"][-1]["content"] == row["label"] == answers[row["id"]]
        assert row["messages"][:-1] == rows[row["id"]]["messages"][:-1] and row["meta"]["teacher"] == teacher
    same = sum(answers[i] == row["label"] for i, row in rows.items()) / len(rows)
    assert found["agreement"] == pytest.approx(same)
    figures = found["results"]
    assert figures["n"] == len(read_jsonl(Path(f"{teacher}/dataset/test.jsonl")))
    assert figures["over_control"]["low"] <= figures["student"] - figures["control"] <= figures["over_control"]["high"]
    assert (
        read_json(Path("student/run.json"))["dataset"] == read_json(Path("student/distill/dataset/dataset.json"))["id"]
    )
    assert figures["kept"]["value"] == pytest.approx(figures["student"] / figures["teacher"])
    assert figures["kept"]["low"] <= figures["kept"]["value"] <= figures["kept"]["high"]
    assert figures["student_cost"]["parameters"] and figures["teacher_cost"]["rows_per_second"] > 0
    assert told(capsys, "evaluate", "student")["n"] == figures["n"]

    def refused(*_: Any) -> Any:
        raise AssertionError("asked again")

    file.write_bytes(file.read_bytes() + b'{"id": "torn')  # as a killed process leaves it
    monkeypatch.setattr(module, "_measured", lambda *_: None)
    monkeypatch.setattr(distil_answers, "teacher_answers", refused)
    assert told(capsys, *command)["kept"] == found["kept"]


@pytest.mark.slow
@pytest.mark.parametrize("level", by_day(["logits", "live"], 1))
def test_probabilities_are_learned_and_asked_for_once(
    level: str, teacher: str, capsys: Said, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["distill", teacher, str(tiny_llama), "--dataset", f"{teacher}/dataset", "--out", "student", *TRAIN]
    more = ["--level", level, "--answers", "own", "--no-control", "--top", "16", "train.divergence=reverse"]
    found = told(capsys, *command, *more)
    assert found["level"] == level and found["answers"] == "own" and found["asked"] == found["kept"]
    lines = read_jsonl(Path("student/metrics.jsonl"))
    assert all("divergence" in line for line in lines if "loss" in line)
    stored = list(Path("student/distill").glob("logits-*/teacher.json"))
    assert len(stored) == (level == "logits") and not list(Path("student/distill").glob("answers-*"))
    if level == "logits":
        about = read_json(stored[0])
        assert about["top"] == 16 and about["teacher"] == teacher
        data = stored[0].parent / "tokens.bin"
        before = data.stat().st_mtime_ns
        assert told(capsys, *command, *more)["results"] and data.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["BASE", "--level", "words"], "--level words is not known"),
        (["BASE", "--answers", "own"], "what the control learns"),
        ([], "Which student"),
        (["BASE", "--layers", "1"], "Which student"),
        (["http://127.0.0.1:9/v1"], "student too many"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], text: str, teacher: str, capsys: Said, tiny_llama: Path
) -> None:
    given = [str(tiny_llama) if a == "BASE" else a for a in arguments]
    more = [str(tiny_llama)] if "many" in text else []
    assert main(["distill", teacher, *more, *given, "--dataset", f"{teacher}/dataset", "--out", "s"]) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error and not Path("s/run.json").exists()


def test_probabilities_of_a_server_are_refused(teacher: str, capsys: Said, tiny_llama: Path) -> None:
    asked = ["distill", "http://127.0.0.1:9/v1", str(tiny_llama), "--model", "m", "--level", "logits"]
    assert main([*asked, "--dataset", f"{teacher}/dataset", "--out", "s"]) == 2
    assert "gives its probabilities" in capsys.readouterr().err


def test_a_larger_student_is_refused(teacher: str, capsys: Said, smollm2: Path) -> None:
    assert main(["distill", teacher, str(smollm2), "--dataset", f"{teacher}/dataset", "--out", "s"]) == 2
    assert "parameters and its teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_requests_without_answers_are_answered_by_the_teacher_too(
    teacher: str, capsys: Said, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = read_jsonl(Path(f"{teacher}/dataset/train.jsonl"))
    tested = read_jsonl(Path(f"{teacher}/dataset/test.jsonl"))[0]["messages"][-2]["content"]
    known = rows[0]["messages"][-2]["content"]
    fresh = ["My umbrella was torn on arrival", "Where do I change the delivery day?", "Nobody has refunded the scarf"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in (*fresh, fresh[0].upper(), tested, known)))
    command = ["distill", teacher, str(tiny_llama), "--dataset", f"{teacher}/dataset", "--out", "student", *TRAIN]
    found = told(capsys, *command, "--prompts", str(file), "--answers", "own")
    taught = read_jsonl(Path("student/distill/dataset/train.jsonl"))
    further = {row["messages"][-2]["content"]: row for row in taught if "teacher" in row["meta"]}
    assert set(further) == set(fresh) and found["unlabelled"] == 3
    assert found["dropped"] == {"there twice": 2, "near a validation or test row": 1}
    (answers,) = Path("student/distill").glob("answers-*.jsonl")
    given = {line["id"]: line["text"] for line in read_jsonl(answers)}
    for row in further.values():
        assert row["label"] == row["messages"][-1]["content"] == given[row["id"]]
        assert row["messages"][:-2] == rows[0]["messages"][:-2]  # the task's instruction
    own = {row["id"]: row for row in rows}
    assert all(own[row["id"]] == row for row in taught if "teacher" not in row["meta"]) and len(taught) == len(rows) + 3
    steps = [
        len([line for line in read_jsonl(Path(f"{run}/metrics.jsonl")) if "loss" in line])
        for run in ("student", "student/distill/control")
    ]
    assert abs(steps[0] - steps[1]) <= 1, "the control trains as long"
    (tmp_path / "known.jsonl").write_text(json.dumps({"text": known}) + "\n")
    assert main([*command[:-4], "other", *TRAIN, "--prompts", str(tmp_path / "known.jsonl")]) == 2
    assert "No request is left" in capsys.readouterr().err


def test_with_a_limit_on_minutes_the_control_trains_as_many_steps_as_the_student(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As many minutes would be fewer steps on a machine that is busier by then."""
    write_record(tmp_path / RunManifest.file, RunManifest(model="small", epochs=0.4))
    recipes: list[Recipe] = []
    monkeypatch.setattr(module, "train_alone", recipes.append)
    dataset: Any = SimpleNamespace(train=[None] * 10, path=tmp_path / "dataset")
    job = DistilJob(None, dataset, tmp_path, DistilOptions(), ["train.max_minutes=1"])  # type: ignore[arg-type]
    module._train_control(job, "small", 20)  # of the 20 rows that the student had, it saw 8
    assert (recipes[0].train.epochs, recipes[0].train.max_minutes) == (0.8, None)


@pytest.mark.slow
@pytest.mark.parametrize("level", by_day(["logits", "live"], ["live"]))
def test_a_student_with_other_tokens_learns_sorted_probabilities(
    level: str, teacher: str, capsys: Said, fewer_tokens: Path
) -> None:
    command = ["distill", teacher, str(fewer_tokens), "--dataset", f"{teacher}/dataset", "--out", "student", *TRAIN]
    more = ["--level", level, "--answers", "own", "--no-control"]
    assert main([*command, *more]) == 2 and "train.divergence=universal" in capsys.readouterr().err
    found = told(capsys, *command, *more, "train.divergence=universal")
    assert found["level"] == level and found["results"]["n"]
    assert any("divergence" in line for line in read_jsonl(Path("student/metrics.jsonl")))
