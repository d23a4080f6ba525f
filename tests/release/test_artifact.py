"""An artifact is whole or not there, has the same id each time, loads elsewhere and says where it comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from manifests import manifest_json

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain, read_json, sha256_file, write_json
from tuneloop.data.task import read_task
from tuneloop.models.chat.template import load_template
from tuneloop.models.load import load_model
from tuneloop.models.trained import load_trained, trained_folder
from tuneloop.release import artifact as exporting
from tuneloop.release.export import export_run

MakeRun = Callable[..., Path]
TASK: dict[str, Any] = {
    "version": 1, "kind": "classification", "format": "text_label", "columns": {"text": "body", "label": "label"},
    "system": "Sort the ticket.", "labels": ["late", "lost"], "answer": "choice",
}  # fmt: skip
TURNS: Any = [{"role": "user", "content": "Where is my parcel?"}]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_merged_artifact_loads_here_and_in_plain_transformers(
    method: str, tiny_llama: Path, make_run: MakeRun
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = make_run(method=method)
    folder = export_run(run).folder
    tuned = load_model(str(tiny_llama), dtype="float32")
    load_trained(tuned, run)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == tuned.template.prompt_ids(TURNS), "a server says what was trained"
    batch = torch.tensor([ids])
    net = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    again = load_model(str(folder), dtype="float32")
    with torch.no_grad():
        wanted = tuned.net.logits(tuned.hidden(batch))  # type: ignore[operator]
        torch.testing.assert_close(again.net.logits(again.hidden(batch)), wanted, atol=1e-3, rtol=1e-3)  # type: ignore[operator]
        torch.testing.assert_close(net(batch).logits, wanted, atol=1e-3, rtol=1e-3)
    assert net.generation_config.eos_token_id == list(load_template(folder).end_ids), "it stops where it was taught to"
    assert not (folder / "tuneloop.json").exists(), "nobody knows its task"


@pytest.mark.parametrize(("method", "form"), [("lora", "merged"), ("lora", "adapter"), ("prefix", ""), ("full", "")])
def test_the_task_travels_with_every_form(method: str, form: str, tiny_llama: Path, make_run: MakeRun) -> None:
    run = make_run(method=method)
    trained = trained_folder(run)
    own = read_json(trained / "tuneloop.json")
    task = plain(read_task(TASK, trained))  # as training writes it, with all of its keys
    write_json(trained / "tuneloop.json", {**own, "task": task})
    artifact = export_run(run, form)
    told = read_json(artifact.folder / "tuneloop.json")
    assert told["task"] == artifact.manifest["task"] and told["task"].items() >= TASK.items()
    assert "tuneloop.json" in artifact.manifest["files"]
    card = (artifact.folder / "README.md").read_text()
    assert "```text\nSort the ticket.\n```" in card and "`late`, `lost`" in card and "`body` (text)" in card
    if artifact.manifest["format"] == "merged":
        assert "base_fingerprint" not in told, "a model like any other, no run's result"
        with pytest.raises(UserError, match="No adapter and no model of a finished run"):
            trained_folder(artifact.folder)


def test_it_says_where_it_comes_from(make_run: MakeRun) -> None:
    run = make_run()
    artifact = export_run(run)
    manifest = read_json(artifact.folder / "artifact.json")
    assert manifest == artifact.manifest and artifact.folder == Path("artifacts") / manifest["id"]
    made = read_json(run / "run.json")
    assert manifest["run"] == {"id": made["id"], "key": made["key"]}
    assert manifest["dataset"] == made["dataset"] and manifest["method"] == "lora" and manifest["format"] == "merged"
    assert manifest["base"]["fingerprint"] == made["model_fingerprint"]
    assert manifest["evaluation"]["metrics"] == read_json(run / "eval.json")["metrics"]
    assert manifest["gate"] == {"status": "none", "suite": None, "forced": False}
    there = {path.name for path in artifact.folder.iterdir()} - {"artifact.json"}
    assert there == set(manifest["files"]) and "README.md" in there
    assert all(sha256_file(artifact.folder / name) == entry["sha256"] for name, entry in manifest["files"].items())
    card = (artifact.folder / "README.md").read_text()
    for said in (
        "75.0 %",
        "0.75 [0.60, 0.86]",
        "On 40 rows of the test split",
        "from_pretrained",
        "licence is not known",
    ):
        assert said in card
    assert str(run.parent) not in card, "a card is for others: it names no folder of this machine"


def test_exporting_again_keeps_the_weights_and_brings_what_is_said_up_to_date(make_run: MakeRun) -> None:
    run = make_run()
    first = export_run(run)
    weights = first.folder / "model.safetensors"
    before = weights.stat().st_ino, weights.stat().st_mtime_ns
    again = export_run(run)
    assert again.existed and again.manifest == first.manifest
    evaluation = read_json(run / "eval.json")
    write_json(run / "eval.json", {**evaluation, "n": 80})
    newer = export_run(run)
    assert newer.folder == first.folder and newer.manifest["evaluation"]["n"] == 80
    assert "On 80 rows" in (first.folder / "README.md").read_text()
    assert read_json(first.folder / "artifact.json") == newer.manifest
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == before


def test_the_id_follows_the_weights_and_the_form_and_not_the_place(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    copy = shutil.copytree(run, tmp_path / "copy")
    other = make_run("other", rslora=True, targets="attention")
    ids = [export_run(run).manifest["id"], export_run(copy, out=Path("out")).manifest["id"]]
    ids += [export_run(run, "adapter").manifest["id"], export_run(other).manifest["id"]]
    settings = read_json(run / "adapter/adapter_config.json")
    write_json(run / "adapter/adapter_config.json", {**settings, "lora_alpha": 2 * settings["lora_alpha"]})
    ids.append(export_run(run).manifest["id"])
    assert ids[0] == ids[1] and len(set(ids)) == 4, "the same matrices with another scale are another model"


def test_a_damaged_artifact_is_written_again(make_run: MakeRun) -> None:
    run = make_run()
    first = export_run(run)
    (first.folder / "model.safetensors").write_bytes(b"damaged")
    again = export_run(run)
    assert not again.existed
    for files in (again.manifest["files"], first.manifest["files"]):
        del files["artifact.cdx.json"]  # it holds the time of the export
    assert again.manifest["files"] == first.manifest["files"]
    assert sha256_file(first.folder / "model.safetensors") == first.manifest["files"]["model.safetensors"]["sha256"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_export_that_fails_leaves_nothing_behind(
    error: BaseException, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    copyfileobj = shutil.copyfileobj
    calls = []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        copyfileobj(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        export_run(run)
    assert not Path("artifacts").exists()
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and "free some space" in str(caught.value)


def test_what_a_killed_export_left_is_no_artifact_and_does_not_disturb(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "model-00009.safetensors").write_bytes(b"half")
    artifact = export_run(run, out=tmp_path / "out")
    assert not left.exists() and "model-00009.safetensors" not in artifact.manifest["files"]


@pytest.mark.parametrize("message", ["file", "folder", "artifact"])
def test_a_place_with_something_else_in_it_is_left_alone(message: str, make_run: MakeRun, tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "out"
    if message == "file":
        out.write_text("mine")
    elif message == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        export_run(run, "adapter", out)
    before = sorted(path.name for path in out.iterdir()) if out.is_dir() else out.read_text()
    with pytest.raises(UserError, match="Here is a") as error:
        export_run(run, "merged", out)
    assert "--out" in str(error.value)
    assert (sorted(path.name for path in out.iterdir()) if out.is_dir() else out.read_text()) == before


def test_an_adapter_is_the_run_s_own_and_loads_in_plain_peft(tiny_llama: Path, make_run: MakeRun) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = make_run()
    folder = export_run(run, "adapter").folder
    for name in exporting.ADAPTER_FILES:
        assert (folder / name).read_bytes() == (run / "adapter" / name).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert PeftModel.from_pretrained(base, folder).active_adapter == "default"
    tuned = load_model(str(tiny_llama), dtype="float32")
    load_trained(tuned, folder)
    assert "PeftModel.from_pretrained" in (folder / "README.md").read_text()


def test_a_prefix_is_an_adapter_only(make_run: MakeRun) -> None:
    run = make_run(method="prefix")
    assert export_run(run).manifest["format"] == "adapter"
    with pytest.raises(UserError, match="prefix can't be merged") as error:
        export_run(run, "merged")
    assert "--format adapter" in str(error.value)


def test_a_full_run_has_no_adapter(make_run: MakeRun) -> None:
    run = make_run(method="full")
    with pytest.raises(UserError, match="no adapter"):
        export_run(run, "adapter")
    copied = export_run(run).folder / "model.safetensors"
    assert copied.read_bytes() == (run / "model" / "model.safetensors").read_bytes()


def test_a_run_that_was_not_evaluated_says_so(make_run: MakeRun) -> None:
    run = make_run()
    (run / "eval.json").unlink()
    artifact = export_run(run)
    assert artifact.manifest["evaluation"] is None
    assert "Not evaluated." in (artifact.folder / "README.md").read_text()


def test_the_figures_of_the_data_set_stand_in_the_card(make_run: MakeRun) -> None:
    run = make_run()
    counts = {"train": 1200, "val": 100, "test": 150}
    write_json(run / "dataset" / "dataset.json", manifest_json(hash="ab" * 32, task="classification", counts=counts))
    card = (export_run(run).folder / "README.md").read_text()
    assert "1,200 train, 100 val, 150 test rows" in card and "ab" * 32 in card


def test_the_notice_of_a_llama_goes_with_it(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.release.licences import licence_of

    monkeypatch.setattr(exporting, "licence_of", lambda model: licence_of("llama-3.1-8b-instruct"))
    artifact = export_run(make_run())
    assert "Llama 3.1 Community License" in (artifact.folder / "NOTICE").read_text()
    assert artifact.manifest["base"]["licence"] == "llama3.1" and "NOTICE" in artifact.manifest["files"]
    card = (artifact.folder / "README.md").read_text()
    assert "license: llama3.1" in card and "Built with Llama" in card


def test_artifact_json_is_plain_json(make_run: MakeRun) -> None:
    text = (export_run(make_run()).folder / "artifact.json").read_text()
    assert json.loads(text)["version"] == 1
