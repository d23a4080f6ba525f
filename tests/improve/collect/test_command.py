"""A store becomes files, and these a data set with the requests' ids."""

import json

import pytest
from traffic import request, thumb

from tuneloop.cli.main import main
from tuneloop.core.files import read_jsonl
from tuneloop.improve.collect.collect import is_held_out
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect

pytestmark = pytest.mark.usefixtures("each_database")


@pytest.fixture
def store(tmp_path):
    connection = connect(tmp_path / "serve", create=True)
    texts = [f"Where is my parcel number {i}, it was sent {i} days ago to street {i * 7}?" for i in range(120)]
    insert(connection, (request(i, i, prompt=[{"role": "user", "content": text}], completion=f"It is on way {i}")
                        for i, text in enumerate(texts)))  # fmt: skip
    insert(connection, (thumb(i, i + 0.1, i % 3 > 0) for i in range(120)))
    insert(connection, (thumb(i, i + 0.2, True, id=f"c{i}", kind="correction", value=f"It waits in depot {i}, mail bo@example.com")
                        for i in range(0, 120, 3)))  # fmt: skip
    connection.close()
    return tmp_path / "serve"


def test_collected_rows_are_prepared_with_their_request_ids_and_the_test_is_that_of_held_out_users(
    store, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(["collect", str(store), "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["sft"] + found["counts"]["heldout"] == 120
    assert found["origins"] == {"correction": 40, "liked": 80}
    assert "bo@example.com" not in "".join(path.read_text() for path in out.glob("*.jsonl"))
    test = f"split.test={out / 'heldout.jsonl'}"
    assert main(["prepare", str(out / "sft.jsonl"), test, "-o", str(tmp_path / "set"), "--json", "-q"]) == 0
    rows = {split: read_jsonl(tmp_path / "set" / f"{split}.jsonl") for split in ("train", "val", "test")}
    assert rows["test"] and all(is_held_out(row["meta"]["user"], 0.1) for row in rows["test"])
    assert rows["train"] and not any(is_held_out(row["meta"]["user"], 0.1) for row in rows["train"] + rows["val"])
    assert all(row["meta"]["request"].startswith("r0") for row in rows["train"])


@pytest.mark.parametrize("name", ["preference", "kto"])
def test_pairs_and_rated_answers_are_prepared_too(store, tmp_path, capsys, name):
    assert main(["collect", str(store), "-o", str(tmp_path / "out"), "-q"]) == 0
    assert "next" in capsys.readouterr().out
    file = str(tmp_path / "out" / f"{name}.jsonl")
    assert main(["prepare", file, "-o", str(tmp_path / name), "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["kept"] > 30, found


def test_nothing_is_collected_where_nobody_said_anything(tmp_path, capsys):
    connection = connect(tmp_path, create=True)
    insert(connection, [request(1, 0)])
    connection.close()
    assert main(["collect", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "No request of 1 has feedback" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(store, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["collect", str(store), "-o", str(tmp_path)]) == 2
    assert "other files" in capsys.readouterr().err
