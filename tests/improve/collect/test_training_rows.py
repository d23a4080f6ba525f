"""What a retraining is trained on: the run's own rows and the collected ones, in the form that the run reads."""

import json

import pytest
from traffic import request, thumb

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.improve.collect.command import settings_of_retraining, write_training_rows
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect

ASKS = [f"the parcel number {i} of house {i * 7} in {i % 11} street has not come since day {i % 29}" for i in range(60)]


@pytest.fixture
def store(tmp_path):
    """Tickets of a new kind, which people have labelled."""
    connection = connect(tmp_path / "serve", create=True)
    insert(
        connection,
        (request(i, i, prompt=[{"role": "user", "content": text}], completion="late") for i, text in enumerate(ASKS)),
    )
    insert(connection, (thumb(i, i, True, kind="label", value="new line") for i in range(60)))
    connection.close()
    return tmp_path / "serve"


def test_a_recipe_of_a_classifier_reads_the_collected_chats_and_keeps_its_own_rows(store, make_tuned, tmp_path, capsys):
    run = make_tuned(data={"instruction": "Which kind?", "text": "text", "label": "label"})
    assert main(["collect", str(store), "-o", "c", "--run", str(run), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    own = {name: len(read_jsonl(run / "dataset" / f"{name}.jsonl")) for name in ("train", "test")}
    assert (counts["train"], counts["test"]) == (counts["sft"] + own["train"], counts["heldout"] + own["test"])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"name": "q", "data": {"sources": ["gone.jsonl"], "text": "text", "label": "label",
                                  "instruction": "Which kind?"}}))  # fmt: skip
    settings = [item.removeprefix("data.") for item in settings_of_retraining(tmp_path / "c")]
    assert main(["prepare", str(recipe), *settings, "split.val=0", "-o", "set", "--json", "-q"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "classification"
    rows = read_jsonl(tmp_path / "set" / "train.jsonl")
    assert {row["label"] for row in rows} == {"late", "lost", "thanks", "new line"}
    assert all(row["messages"][0] == {"role": "system", "content": "Which kind?"} for row in rows)
    users = {row["meta"].get("user") for row in read_jsonl(tmp_path / "set" / "test.jsonl")}
    assert users & {f"u{i}" for i in range(60)} and not users & {row["meta"].get("user", "-") for row in rows}


def test_a_template_is_filled_with_what_the_client_sent(make_tuned, tmp_path):
    records = [{"q": f"{ask}?", "a": f"answer {i}"} for i, ask in enumerate(ASKS)]
    run = make_tuned(records, {"input": "Question: {q}", "output": "{a}"})
    row = {"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "There"}]}
    write_training_rows(run, [row], [], tmp_path)
    last = read_jsonl(tmp_path / "train.jsonl")[-1]
    assert last["messages"] == [{"role": "user", "content": "Question: Where is it?"}, row["messages"][1]]
    asked = read_jsonl(run / "dataset" / "train.jsonl")[0]["messages"][0]["content"]
    assert asked.startswith("Question: the parcel")


def test_without_a_run_the_collected_files_are_taken_as_they_are(tmp_path):
    (tmp_path / "heldout.jsonl").write_text("{}\n")
    assert settings_of_retraining(tmp_path) == [
        f"data.sources={tmp_path / 'sft.jsonl'}", f"data.split.test={tmp_path / 'heldout.jsonl'}",
    ]  # fmt: skip


def test_a_run_without_its_data_set_is_refused(make_run, tmp_path):
    with pytest.raises(UserError, match="A run with its data set is needed"):
        write_training_rows(make_run("bare"), [], [], tmp_path)
