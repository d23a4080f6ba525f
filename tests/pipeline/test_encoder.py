"""An encoder as a model: from the rows to labels with probabilities, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving import running
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl, sha256_file
from tuneloop.models.encoder import Encoder, load_encoder, open_classifier, read_head
from tuneloop.models.files.names import is_encoder, minilm_folder, resolve
from tuneloop.pipeline.encoder import LEAST_ROWS, LabelledTexts, best_temperature, fit_head
from tuneloop.records.encoder import EncoderManifest

pytestmark = pytest.mark.skipif(minilm_folder() is None, reason="MiniLM is not installed")
WORDS = {
    "card": ["my card is lost", "the card was stolen", "a new card please", "the card does not work", "card blocked"],
    "loan": ["i need a loan", "what does a loan cost", "the loan is too dear", "repay the loan", "mortgage interest"],
    "app": ["the app crashes", "i can't log in to the app", "update of the app", "app shows no balance", "password"],
}
PLACES = ["in Berlin", "in Oslo", "today", "again", "since Monday", "at work", "on holiday", "for my son", "at night",
          "twice", "in the shop", "abroad", "by phone", "in March", "on Sunday", "for a week"]  # fmt: skip


def rows_of(number: int, seed: int = 0, sentence: dict[str, list[str]] = WORDS) -> list[dict[str, Any]]:
    every = [
        {"text": f"{text} {path}", "label": name} for name in sentence for text in sentence[name] for path in PLACES
    ]
    random.Random(seed).shuffle(every)
    return every[:number]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(list(command)) == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: ") and len(message.strip().splitlines()) <= 3
    return message


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    out, data = folder / "run", write(folder / "data.jsonl", rows_of(200))
    shape = ["data.split.val=0.2", "data.split.test=0.2", "data.duplicates.near=false"]
    assert main(["run", data, "model=minilm", f"output_dir={out}", *shape, "--quiet", "--json"]) == 0
    return out


def test_a_run_of_an_encoder_has_its_head_its_evaluation_and_its_report(run: Path) -> None:
    manifest, evaluation = read_json(run / "encoder" / "encoder.json"), read_json(run / "eval.json")
    assert manifest["labels"] == ["app", "card", "loan"] and manifest["temperature"] > 0
    assert evaluation["metrics"]["accuracy"]["value"] > 0.9
    assert {"majority class", "tf-idf + logistic regression"} == set(evaluation["baselines"])
    assert evaluation["verdict"]["name"] == "tuned" and (run / "report.html").is_file()
    assert read_json(run / "run.json")["adapter_hash"] == manifest["hash"]
    assert (run / "encoder" / "README.md").read_text().count("- app") == 1


def test_it_says_how_many_rows_a_second_it_answers(run: Path) -> None:
    evaluation = read_json(run / "eval.json")
    cost = evaluation["costs"]["tuned"]
    assert cost["rows_per_second"] == pytest.approx(evaluation["n"] / cost["seconds"], rel=0.1)


def test_the_same_command_repeats_no_stage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "encoder" / "head.safetensors").stat().st_mtime_ns, sha256_file(run / "eval.json")
    assert main(["run", str(run.parent / "data.jsonl"), "model=minilm", f"output_dir={run}", "data.split.val=0.2",
                 "data.split.test=0.2", "data.duplicates.near=false", "--verbose"]) == 0  # fmt: skip
    assert (run / "encoder" / "head.safetensors").stat().st_mtime_ns == before[0]
    assert "already done" in capsys.readouterr().err and sha256_file(run / "eval.json") == before[1]


def test_labels_and_probabilities_of_predict_are_those_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    samples = {item["id"]: item for item in read_jsonl(run / "samples.jsonl")}
    rows = read_jsonl(run / "dataset" / "test.jsonl")
    texts = write(tmp_path / "texts.jsonl", [{"text": row["messages"][-2]["content"]} for row in rows])
    assert main(["predict", str(run), texts, "--out", str(tmp_path / "out.csv"), "--top", "3", "--quiet"]) == 0
    answers = list(csv.DictReader((tmp_path / "out.csv").open()))
    for row, answer in zip(rows, answers, strict=True):
        sample = samples[row["id"]]
        assert answer["prediction"] == sample["prediction"]
        assert float(answer["probability"]) == pytest.approx(sample["confidence"], abs=1e-6)
        assert math.fsum(json.loads(answer["probabilities"]).values()) == pytest.approx(1.0, abs=1e-5)


def test_an_answer_does_not_depend_on_what_it_is_computed_with(run: Path) -> None:
    classifier = open_classifier(run)
    ids = classifier.encoder.ids(["my card is lost", "a " * 300, "", "password " * 40])
    together = classifier.log_probabilities(ids)
    alone = np.concatenate([classifier.log_probabilities([id_]) for id_ in ids])
    assert np.exp(together) == pytest.approx(np.exp(alone), abs=1e-6)


def test_any_file_of_rows_is_evaluated_and_two_evaluations_are_compared(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "other.jsonl", rows_of(240)[200:])
    for name in ("a", "b"):
        assert main(["evaluate", str(run), "--data", file, "--out", name, "--name", name, "--quiet"]) == 0
    assert read_json(tmp_path / "a" / "eval.json")["n"] == 40
    capsys.readouterr()
    assert main(["compare", "a", "b", "--json"]) == 0
    assert all(load["delta"] == 0 for load in json.loads(capsys.readouterr().out)["comparisons"])


def test_training_rows_with_the_text_of_a_test_row_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", rows_of(200))
    shape = ["data.split.val=0.2", "data.split.test=0.2", "data.duplicates.near=false"]
    assert main(["prepare", data, "--out", str(tmp_path / "dataset"), *shape, "model=minilm", "--quiet"]) == 0
    train = tmp_path / "dataset" / "train.jsonl"
    stolen = read_jsonl(tmp_path / "dataset" / "test.jsonl")[:5]
    for row in stolen:
        row["messages"][-2]["content"] = row["messages"][-2]["content"].upper() + " "
        row["id"] = f"{int(row['id'], 16) ^ 1:016x}"
    with train.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in stolen))
    manifest = read_json(tmp_path / "dataset" / "dataset.json")
    manifest["splits"]["train"] |= {"rows": manifest["splits"]["train"]["rows"] + 5, "sha256": sha256_file(train)}
    (tmp_path / "dataset" / "dataset.json").write_text(json.dumps(manifest))
    out = tmp_path / "run"
    assert main(["train", str(tmp_path / "dataset"), "model=minilm", f"output_dir={out}"]) == 0
    assert "5 training rows have the texts of test rows and are not used" in capsys.readouterr().err
    assert read_json(out / "run.json")["rows"] == manifest["splits"]["train"]["rows"] - 5


def test_a_server_gives_the_labels_and_probabilities_of_the_evaluation(
    run: Path, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    samples = {entry["id"]: entry for entry in read_jsonl(run / "samples.jsonl")}
    rows = read_jsonl(run / "dataset" / "test.jsonl")
    texts = [row["messages"][-2]["content"] for row in rows]
    with running(str(run), folder=tmp_path / "serve", environment=cli_environment) as (address, _):
        reply = httpx.post(f"{address}/v1/classify", json={"input": texts, "top": 3}).json()
        name = reply["model"]
        item = {"model": name, "messages": [{"role": "user", "content": texts[0]}]}
        chat = httpx.post(f"{address}/v1/chat/completions", json=item).json()
        with ThreadPoolExecutor(8) as pool:  # they share forward passes in another way
            bodies = ({"input": [text], "model": name} for text in texts[:16])
            alone = list(pool.map(lambda body: httpx.post(f"{address}/v1/classify", json=body).json(), bodies))
    for row, answer in zip(rows, reply["data"], strict=True):
        sample = samples[row["id"]]
        assert answer["label"] == sample["prediction"]
        assert answer["probability"] == pytest.approx(sample["confidence"], abs=1e-6)
        assert math.fsum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-9)
    assert chat["choices"][0]["message"]["content"] == reply["data"][0]["label"]
    for row, answer in zip(rows, alone, strict=False):
        assert answer["data"][0]["probability"] == pytest.approx(samples[row["id"]]["confidence"], abs=1e-6)


def test_a_batch_answers_rows_as_predict_does(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "texts.jsonl", [{"text": "my card is lost"}, {"text": "i need a loan"}])
    assert main(["batch", "texts.jsonl", "--model", str(run), "-o", "out.jsonl", "--quiet"]) == 0
    bodies = [item["response"]["body"] for item in read_jsonl(tmp_path / "out.jsonl")]
    assert [body["choices"][0]["message"]["content"] for body in bodies] == ["card", "loan"]


def test_rows_with_several_labels_get_each_label_that_is_likely(
    tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    item = rows_of(200)
    other = rows_of(200, seed=1)
    rows = [
        {"text": f"{a['text']}, and {b['text']}", "labels": sorted({a["label"], b["label"]})}
        for a, b in zip(item, other, strict=True)
    ]
    run = trained(tmp_path, rows, "data.duplicates.near=false", "data.split.test=0.2")
    manifest = read_json(run / "encoder" / "encoder.json")
    assert manifest["kind"] == "labels" and manifest["labels"] == ["app", "card", "loan"]
    evaluation, samples = read_json(run / "eval.json"), read_jsonl(run / "samples.jsonl")
    assert evaluation["metrics"]["exact_match" if "exact_match" in evaluation["metrics"] else "micro_f1"]["value"] > 0.6
    texts = [row["messages"][-2]["content"] for row in read_jsonl(run / "dataset" / "test.jsonl")]
    with running(str(run), folder=tmp_path / "serve", environment=cli_environment) as (address, _):
        model = httpx.get(f"{address}/v1/models").json()["data"][0]["id"]
        bodies = [{"model": model, "messages": [{"role": "user", "content": text}]} for text in texts]
        replies = [httpx.post(f"{address}/v1/chat/completions", json=body).json() for body in bodies]
    served = [reply["choices"][0]["message"]["content"] for reply in replies]
    assert served == [sample["prediction"] for sample in samples]


def test_an_exported_head_is_registered_and_answers_by_its_alias(
    run: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    artifact, rows = tmp_path / "artifact", [{"text": "my card is lost"}, {"text": "i need a loan"}]
    exported = cli("export", str(run), "--out", str(artifact), "--force", "--json", "--quiet")
    assert exported.returncode == 0, exported.stderr
    assert main(["models", "verify", str(artifact), "--quiet"]) == 0
    assert "text-classification" in (artifact / "README.md").read_text()
    registered = cli("models", "register", str(artifact), "--name", "cards", "--quiet")
    assert registered.returncode == 0, registered.stderr
    file = write(tmp_path / "texts.jsonl", rows)
    for number, name in enumerate((str(run), str(artifact), "cards@candidate")):
        answered = cli("predict", name, file, "--out", f"{number}.jsonl", "--quiet")
        assert answered.returncode == 0, answered.stderr
    first, *others = ((tmp_path / f"{number}.jsonl").read_text() for number in range(3))
    assert others == [first, first] and '"loan"' in first


def test_an_exported_onnx_file_gives_the_probabilities_of_the_evaluation(
    run: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from tokenizers import Tokenizer

    folder = tmp_path / "artifact"
    exported = cli("export", str(run), "--format", "onnx", "--out", str(folder), "--force")
    assert exported.returncode == 0 and "probabilities are those of the run" in exported.stderr
    manifest, session = read_json(folder / "encoder.json"), runtime.InferenceSession(str(folder / "model.onnx"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(manifest["max_tokens"])
    tokenizer.enable_padding()
    samples = {item["id"]: item for item in read_jsonl(run / "samples.jsonl")}
    rows = read_jsonl(run / "dataset" / "test.jsonl")
    texts = tokenizer.encode_batch([row["messages"][-2]["content"] for row in rows])
    ids, mask = (np.array([getattr(text, name) for text in texts]) for name in ("ids", "attention_mask"))
    (probabilities,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    for row, line in zip(rows, probabilities, strict=True):
        assert manifest["labels"][line.argmax()] == samples[row["id"]]["prediction"]
        assert line.max() == pytest.approx(samples[row["id"]]["confidence"], abs=1e-5)
    assert "onnxruntime" in (folder / "README.md").read_text()
    file = write(tmp_path / "texts.jsonl", [{"text": "my card is lost"}])
    assert main(["predict", str(folder), file, "--out", str(tmp_path / "out.jsonl"), "--quiet"]) == 0
    assert read_jsonl(tmp_path / "out.jsonl")[0]["prediction"] == "card"


def test_an_onnx_file_without_the_package_is_refused_in_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    out = tmp_path / "artifact"
    assert "onnx" in refused(capsys, "export", str(run), "--format", "onnx", "--out", str(out), "--force", "--quiet")
    assert not out.exists()


def test_a_cascade_of_the_encoder_and_a_larger_model_is_judged_by_its_confidence(run: Path, tmp_path: Path) -> None:
    small, large, data = tmp_path / "small", tmp_path / "large", write(tmp_path / "data.jsonl", rows_of(200, seed=2))
    assert main(["evaluate", str(run), "--data", data, "--out", str(small), "--quiet"]) == 0
    large.mkdir()
    (large / "eval.json").write_bytes((small / "eval.json").read_bytes())
    samples = [item | {"prediction": item["label"], "predicted_label": item["label"]}
               for item in read_jsonl(small / "samples.jsonl")]  # fmt: skip
    write(large / "samples.jsonl", samples)
    out = tmp_path / "cascade.json"
    assert main(["route", "cascade", str(small), str(large), "--cost", "1,10", "--out", str(out), "--quiet"]) == 0
    record = read_json(out)
    assert record["small"] == str(small) and 0 <= record["asked_large"] <= 1 and record["cost"] <= 11


# --- odd input -------------------------------------------------------------------------------------------


def trained(tmp_path: Path, rows: Sequence[dict[str, Any]], *settings: str) -> Path:
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "run"
    assert main(["run", data, "model=minilm", f"output_dir={out}", "--quiet", *settings]) == 0
    return out


def test_with_three_validation_rows_the_temperature_is_chosen_on_folds(tmp_path: Path) -> None:
    run = trained(tmp_path, rows_of(60), "data.split.val=0.05", "data.duplicates.near=false")
    manifest = read_json(run / "encoder" / "encoder.json")
    assert len(read_jsonl(run / "dataset" / "val.jsonl")) < LEAST_ROWS
    assert "folds" in manifest["calibrated_on"] and 0.02 < manifest["temperature"] < 50


def test_151_labels_with_two_rows_each_work(tmp_path: Path) -> None:
    rows = [
        {"text": f"{kind} {number} {text}", "label": f"topic {number}"}
        for number in range(151)
        for kind, text in (("about", "please help me with that"), ("question on", "what should I do"))
    ]
    shape = ["data.split.val=0", "data.split.test=0.02", "data.duplicates.near=false"]
    run = trained(tmp_path, rows, *shape)
    manifest = read_json(run / "encoder" / "encoder.json")
    assert len(manifest["labels"]) >= 145 and "folds" in manifest["calibrated_on"]


def test_one_row_a_label_is_not_calibrated_and_says_so() -> None:
    texts = LabelledTexts(np.eye(4, dtype=np.float32), ["a", "b", "c", "d"], None)
    labels, head = fit_head(texts)
    assert labels == ["a", "b", "c", "d"] and head.scores(texts.vectors).argmax(1).tolist() == [0, 1, 2, 3]


def test_labels_that_are_sentences_come_back_as_they_are(tmp_path: Path) -> None:
    sentences = {
        "card": "The customer asks about a card, and wants a new one.",
        "loan": "The customer asks about a loan; it is too dear.",
        "app": "Something is wrong with the app!",
    }
    rows = [row | {"label": sentences[row["label"]]} for row in rows_of(120)]
    run = trained(tmp_path, rows, "data.duplicates.near=false")
    assert set(read_json(run / "encoder" / "encoder.json")["labels"]) == set(sentences.values())
    assert {item["prediction"] for item in read_jsonl(run / "samples.jsonl")} <= set(sentences.values())


def test_an_empty_text_gets_a_label_or_a_reason(run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "texts.jsonl", [{"text": ""}, {"text": "   "}, {"text": "my card"}])
    main(["predict", str(run), file, "--out", str(tmp_path / "out.jsonl"), "--quiet"])
    answers = read_jsonl(tmp_path / "out.jsonl")
    assert all((answer["prediction"] is None) == bool(answer.get("error")) for answer in answers)
    assert answers[2]["prediction"] == "card"


def test_one_label_alone_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"label": "card"} for row in rows_of(60)]
    data = write(tmp_path / "data.jsonl", rows)
    message = refused(capsys, "run", data, "model=minilm", f"output_dir={tmp_path / 'run'}", "--quiet")
    assert "two labels" in message


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["evaluate", "minilm", "--data", "rows.jsonl"], "train a head"),
        (["plan", "rows.jsonl", "model=minilm"], "is an encoder"),
        (["run", "rows.jsonl", "model=minilm", "max_minutes=3"], "max_minutes"),
        (["run", "rows.jsonl", "model=minilm", "evaluate.consistency=3"], "evaluate.consistency"),
        (["run", "texts.jsonl", "model=minilm"], "texts as answers"),
    ],
)
def test_what_an_encoder_can_not_do_is_refused(
    command: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", rows_of(60))
    long = [
        {"prompt": f"{row['text']}?", "completion": f"Sure: {n} ways to {row['text']}"}
        for n, row in enumerate(rows_of(60))
    ]
    write(tmp_path / "texts.jsonl", long)
    assert text in refused(capsys, *command, "--quiet")


def test_few_shot_and_forms_of_language_models_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--few-shot" in refused(capsys, "evaluate", str(run), "--few-shot", "3", "--quiet")
    assert "encoder" in refused(capsys, "export", str(run), "--format", "merged", "--force", "--quiet")
    assert "--quant" in refused(capsys, "export", str(run), "--quant", "q8_0", "--force", "--quiet")


# --- parts -----------------------------------------------------------------------------------------------


def test_language_models_are_no_encoders() -> None:
    assert is_encoder("minilm") and is_encoder(str(resolve("minilm")))
    assert not is_encoder("smollm2-135m") and not is_encoder("llama-3.2-1b") and not is_encoder("runs/nope")


def test_a_damaged_head_is_refused(run: Path, tmp_path: Path) -> None:
    head = run / "encoder" / "head.safetensors"
    (tmp_path / "head.safetensors").write_bytes(head.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        read_head(tmp_path / "head.safetensors", 3)
    with pytest.raises(UserError, match="another shape"):
        read_head(head, 4)


def test_a_head_is_saved_as_it_is_whatever_its_order_in_memory(tmp_path: Path) -> None:
    texts = LabelledTexts(np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32), ["a", "b", "c"] * 10, None)
    _, head = fit_head(texts)
    head.save(tmp_path / "head.safetensors")
    assert np.array_equal(read_head(tmp_path / "head.safetensors", 3).weight, head.weight)


def test_the_temperature_makes_probabilities_say_how_often_they_are_right() -> None:
    generator, manifest = np.random.default_rng(0), EncoderManifest(labels=["a", "b"])
    chances = generator.uniform(0.05, 0.95, 4000)
    right = np.log(chances / (1 - chances))
    labels = ["b" if generator.uniform() < chance else "a" for chance in chances]
    scores = np.stack([np.zeros(4000), 3 * right], axis=1)  # three times too sure
    assert best_temperature(manifest, scores, LabelledTexts(scores, labels, None)) == pytest.approx(3, rel=0.1)


def test_an_encoder_cuts_texts_at_its_length_and_embeds_none_as_nothing() -> None:
    encoder: Encoder = load_encoder(resolve("minilm"))
    assert len(encoder.ids(["word " * 1000])[0]) == encoder.max_tokens == 256
    assert encoder.embed([]).shape == (0, 384) and np.isfinite(encoder.embed([""])).all()
