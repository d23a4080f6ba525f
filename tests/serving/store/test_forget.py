"""Who is erased from a server's store is named wherever rows were made of the requests, and afterwards stands nowhere."""

import json
import shutil
from pathlib import Path

import pytest
from traffic import request, thumb

from tuneloop.cli.main import main
from tuneloop.core.files import write_json
from tuneloop.registry.record import Lineage, RegisteredModel, RegisteredVersion
from tuneloop.serving.store import forget as forget_requests
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.forget import made_of_requests
from tuneloop.serving.store.store import connect

PLANTED = [f"zqxv{i:03d}planted" for i in range(200)]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A server's folder with 200 planted values of one user, and all that people make of it."""
    monkeypatch.chdir(tmp_path)
    connection = connect("serve", create=True)
    rows = []
    for i in range(300):
        value, user = (PLANTED[i], "anna") if i < 200 else (f"parcel {i}", f"u{i % 30}")
        asked = f"where is my order number {i}, it was {'' if i % 2 else value}"
        rows.append(
            request(i, i / 10, user=user, prompt=[{"role": "user", "content": asked}], completion=f"it is {i} {value}")
        )
    insert(connection, rows)
    insert(connection, (thumb(i, i / 10, i % 3 > 0) for i in range(300)))
    insert(
        connection,
        (thumb(i, i / 10, True, id=f"c{i}", kind="comment", value=f"call {PLANTED[i]}") for i in range(0, 200, 3)),
    )
    connection.close()
    assert main(["collect", "serve", "-o", "collected", "--per-user", "500", "--heldout-share", "0", "-q"]) == 0
    assert main(["prepare", "collected/sft.jsonl", "-o", "set", "-q", "duplicates.near=false"]) == 0
    assert main(["review", "draw", "serve", "-o", "queue", "--rows", "20", "-q"]) == 0
    assert main(["collect", "export", "-o", "said.jsonl", "-q"]) == 0
    dataset = json.loads((tmp_path / "set" / "dataset.json").read_text())["id"]
    for folder, name, value in (("runs/one", "run.json", {"id": "one-1", "dataset": dataset}), ("runs/two", "run.json", {"id": "two-1", "dataset": "x"}),
                                ("artifacts/one", "artifact.json", {"run": {"id": "one-1"}})):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
        write_json(tmp_path / folder / name, value)
    return tmp_path


@pytest.fixture
def versions(path, monkeypatch):
    """A registry with a version of the run that has learned the values, one of the data set whose run is gone, and another."""
    lineages = [
        ("one-1", "x"),
        ("gone-1", json.loads((path / "set" / "dataset.json").read_text())["id"]),
        ("two-1", "x"),
    ]
    held = [
        RegisteredVersion(version=str(at + 1), aliases=["champion"] if at == 0 else [], source="", tracked="", created="",
                          lineage=Lineage(artifact=f"a{at}", manifest="", format="adapter", run=run, dataset=dataset))
        for at, (run, dataset) in enumerate(lineages)
    ]  # fmt: skip
    monkeypatch.setattr(forget_requests, "open_registry", lambda: None)
    monkeypatch.setattr(
        forget_requests,
        "read_models",
        lambda _: [RegisteredModel(name="support", aliases={}, versions=held, history=[])],
    )


def holding(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and b"zqxv" in path.read_bytes()
    )


def test_200_planted_values_are_named_wherever_they_are_and_then_stand_nowhere(path, capsys):
    capsys.readouterr()
    assert len(holding(path)) >= 6
    assert main(["data", "forget", "serve", "--match", "user=anna", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["requests"] == 200 and told["erased"]
    named = {(entry["kind"], entry["path"]) for entry in told["descendants"]}
    assert named == {("collected rows", "collected"), ("data set", "set"), ("review draw", "queue"), ("file", "said.jsonl"),
                     ("run", "runs/one"), ("artifact", "artifacts/one")}  # fmt: skip
    assert not [name for name in holding(path) if name.startswith("serve")]
    for item in told["descendants"]:
        if item["kind"] == "data set":
            text = item["advice"].replace("'", "").split()[1:]
            assert main([*text, "--yes", "-q"]) == 0
        elif item["kind"] in ("collected rows", "review draw"):
            shutil.rmtree(path / item["path"])
        elif item["kind"] == "file":
            (path / item["path"]).unlink()
    assert holding(path) == []
    assert made_of_requests([path], [f"r{i:06d}" for i in range(200)], "user=anna") == []


def test_data_sets_are_rebuilt_without_them_when_it_is_asked_for(path, capsys):
    capsys.readouterr()
    before = json.loads((path / "set" / "dataset.json").read_text())["id"]
    assert main(["data", "forget", "serve", "--match", "user=anna", "--yes", "--rebuild", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    after = json.loads((path / "set" / "dataset.json").read_text())["id"]
    assert told["rebuilt"] == {before: after} and before != after
    assert not [name for name in holding(path) if name.startswith(("serve", "set"))]


def test_versions_that_were_registered_are_named(path, versions, capsys):
    capsys.readouterr()
    wanted = {"models:/support/1", "models:/support/2"}
    for of, match in (("serve", "user=anna"), ("set", "zqxv")):
        assert main(["data", "forget", of, "--match", match, "--dry-run", "--json"]) == 0
        told = [
            load for load in json.loads(capsys.readouterr().out)["descendants"] if load["kind"] == "registered version"
        ]
        assert {item["path"] for item in told} == wanted
        assert "its champion" in told[0]["why"] and "--name support" in told[0]["advice"]


def test_a_registry_that_can_not_be_read_is_named(path):
    Path("mlflow.db").write_text("this is no database " * 100)
    (found,) = [
        item
        for item in made_of_requests([path], [f"r{i:06d}" for i in range(200)], "user=anna")
        if item.kind == "registry"
    ]
    assert "can't be read" in found.why


def test_nothing_is_named_that_holds_none_of_them(path):
    assert made_of_requests([path], ["r999999"], "user=nobody") == [] and made_of_requests([path], [], "x") == []
    assert {item.kind for item in made_of_requests([path], ["r000001"], "id=r000001")} >= {"file"}
