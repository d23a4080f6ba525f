"""`tuneloop evaluate` and `compare` on any target and any rows, through the command line."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_http import Quiet, listening

from patience import HANG
from tuneloop.cli.main import main

RECORDS = [
    {
        "id": f"t{i}",
        "text": f"my card number {i} is {'lost' if i % 2 else 'late'}",
        "label": "lost" if i % 2 else "late",
    }
    for i in range(12)
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_packaged: dict[str, str]) -> Path:
    """An empty working folder and a cache that has nothing but a small model in the place of the packaged one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_packaged["TUNELOOP_CACHE"], tmp_path / "cache")
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    write("data.jsonl", RECORDS)
    (tmp_path / "notes.txt").write_text("not a model")
    return tmp_path


def write(name: str, records: list[Any]) -> None:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def server() -> Iterator[Any]:
    """Answers with the label that the text names; a text with "number 3" breaks it, as long as `broken` is set."""

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            http.asked.append(body)
            http.may_answer.wait(HANG)
            text = body["messages"][-1]["content"]
            broken = http.broken and "number 3 " in text
            content = "lost" if "is lost" in text else "late"
            reply = {
                "choices": [{"message": {"content": content}}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 1},
            }
            self.answer(400 if broken else 200, b"{" if broken else reply)

    http = SimpleNamespace(asked=[], broken=False, may_answer=threading.Event(), url="")
    http.may_answer.set()
    with listening(Handler) as http.url:
        yield http


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json", "--quiet"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_an_endpoint_is_asked_once_and_paid_for_once(
    here: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("evaluate", "--endpoint", server.url, "--model", "m", "--data", "data.jsonl", "--usd-per-million-input", "2")
    first = printed(capsys, *ask)
    assert first["metrics"]["accuracy"]["value"] == 1.0 and len(server.asked) == 12
    assert (first["model"], first["name"]) == ("m", "m")
    assert first["costs"]["m"]["usd_spent"] == pytest.approx(120 * 2 / 1e6)
    again = printed(capsys, *ask, "--out", "again")
    assert len(server.asked) == 12 and again["costs"]["m"]["usd_spent"] == 0
    assert again["metrics"] == first["metrics"]


def test_failed_requests_are_counted_told_and_asked_again(
    here: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.broken = True
    ask = ("evaluate", "--endpoint", server.url, "--model", "m", "--data", "data.jsonl")
    found = printed(capsys, *ask, status=1)
    assert [failure["id"] for failure in found["failures"]] == ["t3"] and found["costs"]["m"]["failed"] == 1
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(11 / 12)
    assert any("1 of 12 requests failed" in note for note in found["notes"])
    server.broken = False
    assert printed(capsys, *ask)["metrics"]["accuracy"]["value"] == 1.0 and len(server.asked) == 13


def test_a_prompt_of_ones_own_reaches_the_endpoint(here: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.yaml").write_text("system: 'One of:\n\n  {labels}'\nuser: 'Ticket: {input}'")
    printed(
        capsys,
        "evaluate",
        "--endpoint",
        server.url,
        "--model",
        "m",
        "--data",
        "data.jsonl",
        "--prompt",
        "p.yaml",
        "limit=1",
    )
    system, user = server.asked[0]["messages"]
    assert system["content"].split() == ["One", "of:", "late", "lost"] and user["content"].startswith("Ticket: my card")


def test_predictions_are_held_against_references(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", [{"id": r["id"], "prediction": r["label"]} for r in reversed(RECORDS)])
    write("b.jsonl", [{"row": i, "prediction": "late"} for i in range(12)])
    a = printed(capsys, "evaluate", "--predictions", "a.jsonl", "--references", "data.jsonl", "--out", "a")
    b = printed(capsys, "evaluate", "--predictions", "b.jsonl", "--references", "data.jsonl", "--out", "b")
    assert (a["metrics"]["accuracy"]["value"], b["metrics"]["accuracy"]["value"]) == (1.0, 0.5)
    both = printed(capsys, "compare", "b", "a")
    assert (Path(both["path"]) / "eval.json").is_file() and (Path(both["path"]) / "report.html").is_file()
    pair = next(c for c in both["comparisons"] if c["metric"] == "accuracy")
    assert (pair["a"], pair["b"], pair["delta"], pair["verdict"]) == ("b", "a", 0.5, "better")


def test_files_of_predictions_are_compared_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", [{"id": r["id"], "prediction": r["label"]} for r in RECORDS])
    write("b.jsonl", [{"row": i, "prediction": "late"} for i in range(12)])
    both = printed(capsys, "compare", "b.jsonl", "a.jsonl", "--references", "data.jsonl")
    pair = next(c for c in both["comparisons"] if c["metric"] == "accuracy")
    assert (pair["a"], pair["b"], pair["delta"], pair["verdict"]) == ("b.jsonl", "a.jsonl", 0.5, "better")
    assert main(["compare", "b.jsonl", "a.jsonl", "-q"]) == 2
    assert "--references" in capsys.readouterr().err


def test_references_may_be_a_split_a_data_set_or_a_splits_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    texts = [" ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(8)) for _ in range(120)]
    write("big.jsonl", [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)])
    assert main(["prepare", "big.jsonl", "--out", "ds", "-q"]) in (0, 1)
    capsys.readouterr()
    rows = [json.loads(line) for line in Path("ds/test.jsonl").read_text().splitlines()]
    write("p.jsonl", [{"id": row["id"], "prediction": row["label"]} for row in rows])
    for path in (
        ("--dataset", "ds", "--references", "test"),
        ("--references", "ds"),
        ("--references", "ds/test.jsonl"),
    ):
        found = printed(capsys, "evaluate", "--predictions", "p.jsonl", *path, "--out", "out")
        assert (found["n"], found["metrics"]["accuracy"]["value"]) == (len(rows), 1.0)


def test_programs_with_several_answers_give_pass_at_k(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = "def check(candidate):\n    assert candidate() == 1"
    problem = {"prompt": "def f():\n", "entry_point": "f", "test": test, "canonical_solution": "    return 1"}
    write("code.jsonl", [{"task_id": f"T/{i}", **problem} for i in range(2)])
    good, bad = "    return 1", "    return 2"
    write(
        "p.jsonl",
        [{"task_id": "T/0", "completion": c} for c in (good, bad)] + [{"task_id": "T/1", "completion": [good] * 2}],
    )
    write("q.jsonl", [{"id": "T/0", "prediction": [good] + [bad] * 4}, {"id": "T/1", "prediction": [bad] * 5}])
    ask = ("evaluate", "--references", "code.jsonl", "embedding=false", "--predictions")
    assert printed(capsys, *ask, "p.jsonl")["metrics"]["pass@1"]["value"] == 0.75
    found = printed(capsys, *ask, "q.jsonl")["metrics"]
    assert (found["pass@1"]["value"], found["pass@5"]["value"]) == (pytest.approx(0.1), 0.5)


def test_answers_that_repeat_are_scored_as_labels_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("r.jsonl", [{"id": i, "reference": "yes" if i % 2 else "no"} for i in range(12)])
    write("p.jsonl", [{"id": i, "prediction": "Yes." if i else "maybe"} for i in range(12)])
    found = printed(capsys, "evaluate", "p.jsonl", "--references", "r.jsonl", "embedding=false")
    assert found["metrics"]["accuracy"]["value"] == 0.5 and found["invalid"] == 1
    assert found["metrics"]["exact_match"]["value"] == 0.0


def test_rows_without_labels_count_as_empty_sets(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("r.jsonl", [{"id": 1, "labels": ["a", "b"]}, {"id": 2, "labels": []}, {"id": 3, "labels": ["a"]}])
    write(
        "p.jsonl", [{"id": 1, "prediction": ["b", "a"]}, {"id": 2, "prediction": []}, {"id": 3, "prediction": "none"}]
    )
    found = printed(capsys, "evaluate", "--predictions", "p.jsonl", "--references", "r.jsonl")
    assert found["metrics"]["subset_accuracy"]["value"] == pytest.approx(2 / 3) and found["invalid"] == 0
    assert found["metrics"]["macro_f1"]["value"] == pytest.approx((2 / 3 + 1) / 2)


def test_references_alone_are_enough_for_predictions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("r.jsonl", [{"id": 1, "references": ["yes", "yeah"]}, {"id": 2, "references": ["no"]}])
    write("p.jsonl", [{"id": 2, "prediction": "yes"}, {"id": 1, "prediction": "yeah"}])
    found = printed(capsys, "evaluate", "--predictions", "p.jsonl", "--references", "r.jsonl")
    assert found["task"] == "generation" and found["metrics"]["exact_match"]["value"] == 0.5
    write("more.jsonl", [{"id": 1, "dialogue": "a b", "topics": ["x"], "references": ["yes"]}])
    write("q.jsonl", [{"id": 1, "prediction": "yes"}])
    assert printed(capsys, "evaluate", "--predictions", "q.jsonl", "--references", "more.jsonl")["n"] == 1


def test_rows_without_prediction_count_as_wrong_and_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [{"id": r["id"], "prediction": r["label"]} for r in RECORDS[:9]] + [{"id": "other", "prediction": "lost"}]
    write("p.jsonl", given)
    assert main(["evaluate", "--predictions", "p.jsonl", "--references", "data.jsonl", "--json", "-q"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 12 and found["metrics"]["accuracy"]["value"] == 9 / 12 and found["invalid"] == 3
    assert [f["id"] for f in found["failures"]] == ["t9", "t10", "t11", "other"]
    assert "3 of 12 rows have no prediction and count as wrong" in found["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluate",), "Evaluate what?"),
        (("evaluate", "m", "--predictions", "data.jsonl"), "One target at a time"),
        (("evaluate", "--predictions", "data.jsonl", "--data", "data.jsonl"), "their own predictions"),
        (("evaluate", "--endpoint", "http://127.0.0.1:9", "--data", "data.jsonl"), "go together"),
        (("evaluate", "--endpoint", "localhost", "--model", "m", "--data", "data.jsonl"), "Not an endpoint"),
        (("evaluate", "--predictions", "none.jsonl", "--data", "data.jsonl"), "none.jsonl"),
        (("evaluate", "data.jsonl", "--data", "data.jsonl"), "their own predictions"),
        (("evaluate", "notes.txt", "--data", "data.jsonl"), "This file is not a model"),
        (("evaluate", "--predictions", "data.jsonl", "--data", "data.jsonl", "memorisation=true"), "made from"),
        (("evaluate", "runs/elsewhere"), "No such file or folder"),
        (("evaluate", "smollm2-135m"), "Which rows?"),
        (("compare", "a"), "Two evaluations"),
        (("compare", "--check-judge", "data.jsonl"), "--judge"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    status = main([*arguments, "--quiet"])
    shown = capsys.readouterr().err
    assert status == 2 and said in shown and "Traceback" not in shown and "should not happen" not in shown


def test_a_file_without_rows_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.jsonl").write_text("")
    assert main(["evaluate", "--predictions", "data.jsonl", "--data", "empty.jsonl", "-q"]) == 2
    assert "empty" in capsys.readouterr().err


def test_an_adapter_and_forgetting_against_a_base(
    here: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("general.jsonl", [{"instruction": f"Say {w}.", "output": w} for w in ("yes", "no", "maybe", "never") * 3])
    found = printed(
        capsys, "evaluate", str(tiny_llama), "--data", "data.jsonl", "--base", str(tiny_llama), "general=general.jsonl", "limit=2",
    )  # fmt: skip
    assert found["forgetting"]["n"] == 12 and found["forgetting"]["loss"]["value"] == pytest.approx(0, abs=1e-6)
    assert main(["evaluate", str(tiny_llama), "--data", "data.jsonl", "general=general.jsonl", "limit=2", "-q"]) == 2
    assert "--base" in capsys.readouterr().err


def test_an_adapter_of_another_trainer_is_measured_by_its_folder(
    here: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained("theirs")
    found = printed(capsys, "evaluate", "theirs", "--data", "data.jsonl", "--name", "theirs")
    assert found["n"] == 12 and 0 <= found["metrics"]["accuracy"]["value"] <= 1
    assert any("12 rows of data.jsonl are too few to spare examples" in note for note in found["notes"])
    alone = printed(capsys, "evaluate", str(tiny_llama), "--data", "data.jsonl", "--name", "base")
    of_base = pytest.approx(alone["metrics"]["ece"], rel=1e-6)
    assert found["metrics"]["ece"] != of_base, "the adapter answered, not its base"
    assert found["baselines"]["zero-shot"]["ece"] == of_base, "and the base was measured with it"


def test_an_adapter_is_measured_against_its_base_and_classifiers_in_one_command(
    here: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained("theirs")
    many = [{**record, "id": f"m{i}", "text": f"{record['text']} number {i}"} for i, record in enumerate(RECORDS * 4)]
    write("many.jsonl", many)
    held = printed(capsys, "evaluate", "theirs", "--data", "many.jsonl", "baselines.few_shot=2")
    assert held["n"] == 36 and any("12 rows of many.jsonl are few-shot's examples" in note for note in held["notes"])
    systems = {"majority class", "zero-shot", "few-shot", "tf-idf + logistic regression"}
    assert systems <= held["baselines"].keys() and held["verdict"]["outcome"] != "not compared"
    whole = printed(
        capsys, "evaluate", "theirs", "--data", "data.jsonl", "--train", "many.jsonl", "baselines.few_shot=2",
        "baselines.zero_shot=false", "--out", "whole",
    )  # fmt: skip
    assert whole["n"] == 12 and "few-shot" in whole["baselines"] and "zero-shot" not in whole["baselines"]


def test_an_endpoint_is_asked_several_ways(here: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(
        capsys, "evaluate", "--endpoint", server.url, "--model", "m", "--data", "data.jsonl", "consistency=5", "consistency_rows=6"
    )  # fmt: skip
    part = found["consistency"]
    assert part["rows"] == 6 and part["ways"] == 5 and sum(part["asked"].values()) == 30
    assert part["values"]["agreement"]["value"] == 1.0, "the server reads what no rewording touches"
    assert "m has the same answer in 100.0 %" in part["words"][0]
    assert any(line in (Path(found["path"]) / "report.html").read_text() for line in part["words"])
    kept = [json.loads(line) for line in (Path(found["path"]) / "consistency.jsonl").read_text().splitlines()]
    assert len(kept) == 30 and {item["kind"] for item in kept} == set(part["asked"])


def test_a_file_of_answers_is_not_asked_in_other_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("answers.jsonl", [{"id": "t0", "prediction": "late"}])
    assert main(["evaluate", "--predictions", "answers.jsonl", "--data", "data.jsonl", "consistency=5"]) == 2
    assert "can't answer other wordings" in capsys.readouterr().err


def test_a_system_that_has_not_answered_yet_is_told_of(
    here: Path, server: Any, cli_environment: dict[str, str]
) -> None:
    """The server answers only after a line about it was read: silence would last until the request is given up."""
    server.may_answer.clear()
    command = ("evaluate", "--endpoint", server.url, "--model", "slow", "--data", "data.jsonl", "--no-cache")
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneloop", *command, "--timeout", "300", "--retries", "0"],
        env=cli_environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    told = next((line for line in process.stderr if line.startswith("slow: 0/12")), "")
    assert told and not server.may_answer.is_set()
    server.may_answer.set()
    process.communicate()
    assert process.returncode == 0


def test_a_file_is_evaluated_without_its_personal_data(
    here: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the server nor any file gets a value, and rows still find their predictions."""
    mail, phone = "mia.berg@mail.example.org", "+49 30 23125678"
    rows = [{**r, "text": f"{r['text']}, write to {mail}", "note": phone} for r in RECORDS]
    rows[4]["id"], rows[5]["id"] = "jo@mail.example.org", "al@mail.example.org"
    write("raw.jsonl", rows)
    ask = ["--endpoint", server.url, "--model", "m", "--data", "raw.jsonl", "--out", "asked"]
    assert main(["evaluate", *ask]) == 0
    said = capsys.readouterr()
    assert "12 of 12 records of raw.jsonl hold personal data (EMAIL, PHONE): replaced" in said.out + said.err
    assert "<EMAIL>" in json.dumps(server.asked)
    write("answers.jsonl", [{"id": r["id"], "prediction": r["label"]} for r in reversed(rows)])
    found = printed(capsys, "evaluate", "--predictions", "answers.jsonl", "--data", "raw.jsonl", "--out", "given")
    assert found["metrics"]["accuracy"]["value"] == 1.0 and not found.get("failures")
    written = [path for path in here.rglob("*") if path.is_file() and path.name not in ("raw.jsonl", "answers.jsonl")]
    assert len(written) > 4
    secrets = [mail, phone, "jo@mail", "al@mail"]
    assert not [(path.name, s) for path in written for s in secrets if s in path.read_text(errors="replace")]
    assert not [s for s in secrets if s in said.out + said.err + json.dumps(server.asked) + json.dumps(found)]


def test_personal_data_of_a_file_stay_where_the_settings_say_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("raw.jsonl", [{**r, "text": r["text"] + " me@mail.example.org"} for r in RECORDS])
    write("answers.jsonl", [{"id": r["id"], "prediction": r["label"]} for r in RECORDS])
    printed(
        capsys,
        "evaluate",
        "--predictions",
        "answers.jsonl",
        "--data",
        "raw.jsonl",
        "--out",
        "off",
        "data.personal.mode=off",
    )
    assert "me@mail.example.org" in Path("off/samples.jsonl").read_text()
