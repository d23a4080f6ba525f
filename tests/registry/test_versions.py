"""Versions and aliases in a real MLflow registry: what is decided is recorded, and nothing stays half done."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stored import unpacked
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, sha256_file, write_json
from tuneloop.core.ui import reporting
from tuneloop.models.load import load_model
from tuneloop.models.trained import load_trained
from tuneloop.pipeline.answers.asking import open_with_task
from tuneloop.records.record import JsonSteps, MigrationStep
from tuneloop.registry import versions
from tuneloop.registry.record import RegistryEvent
from tuneloop.registry.registered import evaluation_place, local_name, open_registry, registered_name
from tuneloop.registry.versions import champions, read_model, read_models
from tuneloop.release.export import export_run

pytest.importorskip("mlflow", reason="needs MLflow")
MakeRun = Callable[..., Path]
Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_registry, "mlflow.db")
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves what it made for the others."""
    return tmp_path_factory.mktemp("kept") / "all"


@pytest.fixture
def artifacts(kept: Path, make_run: MakeRun, tmp_path: Path) -> list[str]:
    """An adapter and a model of the same run, `runs/tickets`."""
    if not kept.exists():
        run = make_run("runs/tickets")
        write_json(run / "run.json", {**read_json(run / "run.json"), "id": "tickets"})
        for form in ("adapter", "merged"):
            export_run(run, form)
        for part in ("runs", "artifacts"):
            shutil.copytree(part, kept / part)
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    judged(Path("runs/tickets"))
    return sorted(map(str, Path("artifacts").iterdir()))


def judged(folder: Path, status: str = "pass", message: str = "accuracy: +0.0 against the base") -> None:
    """What the gate leaves in the folder of an evaluation."""
    checks = [{"kind": "metric", "name": "accuracy", "status": status, "message": message}]
    outcome = {"version": 1, "status": status, "suite": {"name": "release", "hash": "h"}, "checks": checks}
    write_json(folder / "gate.json", {**outcome, "evaluation": sha256_file(folder / "eval.json")})


def ok(said: Said, *arguments: str) -> dict[str, Any]:
    """What a command that does its work prints with --json."""
    assert main([*arguments, "--json"]) == 0, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


def refused(said: Said, *arguments: str) -> str:
    """The message of a command that ends with status 2."""
    assert main(list(arguments)) == 2
    err = said.readouterr().err
    message = err[err.index("Error:") :]
    assert len(message.strip().splitlines()) <= 3 and "next:" in message
    return message


def two_versions(said: Said, artifacts: list[str]) -> None:
    for artifact in artifacts:
        ok(said, "models", "register", artifact, "--name", "support")
        ok(said, "models", "promote", "support")


def test_a_release_and_its_way_back_stand_in_the_registry_with_who_when_and_why(
    artifacts: list[str], capsys: Said
) -> None:
    first = ok(capsys, "models", "register", artifacts[0], "--name", "support", "--why", "the first one")
    assert first["version"] == "1" and first["aliases"] == ["candidate"]
    lineage = first["lineage"]
    assert lineage["artifact"] == Path(artifacts[0]).name and lineage["dataset"] == "tickets-0123456789ab"
    assert lineage["metrics"]["accuracy"]["value"] == 0.75 and lineage["run"] == "tickets"
    assert ok(capsys, "models", "promote", "support")["aliases"] == {"candidate": "1", "champion": "1"}
    ok(capsys, "models", "register", artifacts[1], "--name", "support")
    promoted = ok(capsys, "models", "promote", "support", "--why", "faster")
    assert promoted["aliases"] == {"candidate": "2", "champion": "2", "previous": "1"}
    assert ok(capsys, "models", "rollback", "support", "--why", "not faster")["aliases"] == {
        "candidate": "2",
        "champion": "1",
    }
    assert "no previous version" in refused(capsys, "models", "rollback", "support")
    model = read_model(open_registry(), "support")
    events = [(e.action, e.model_version, e.why) for e in model.history]
    assert events == [
        ("register", "1", "the first one"),
        ("promote", "1", ""),
        ("register", "2", ""),
        ("promote", "2", "faster"),
        ("rollback", "1", "not faster"),
    ]
    assert all("@" in event.who and event.when for event in model.history)
    assert [e.gate.status for e in model.history] == ["none", "pass", "none", "pass", "none"]
    assert main(["models", "support"]) == 0
    out = capsys.readouterr().out
    assert "accuracy 0.750 [0.600, 0.860]" in out and "champion" in out and "rollback 1 after 2" in out


def event(action: Any, version: str) -> RegistryEvent:
    return RegistryEvent(id="", action=action, model_version=version, aliases={}, who="", when="")


def test_the_way_back_is_replayed_from_the_history() -> None:
    history = [event("promote", v) for v in "123"]
    assert champions(history) == ["1", "2", "3"]
    assert champions([*history, event("rollback", "2"), event("register", "4"), event("promote", "4")]) == [
        "1",
        "2",
        "4",
    ]


def test_registering_again_finds_the_version_and_changes_nothing(artifacts: list[str], capsys: Said) -> None:
    two_versions(capsys, artifacts)
    before = read_model(open_registry(), "support")
    assert ok(capsys, "models", "register", artifacts[0], "--name", "support")["version"] == "1"
    ok(capsys, "models", "promote", "support")  # which is the champion already
    assert read_model(open_registry(), "support") == before


def test_a_red_gate_stops_a_promotion_unless_overruled_and_that_is_recorded(artifacts: list[str], capsys: Said) -> None:
    run = Path("runs/tickets")
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    judged(run, "fail", "accuracy: -0.2 against the base")
    message = refused(capsys, "models", "promote", "support")
    assert "gate is red" in message and "--force REASON" in message
    assert "reason is empty" in refused(capsys, "models", "promote", "support", "--force", " ")
    assert read_model(open_registry(), "support").aliases == {"candidate": "1"}
    event = ok(capsys, "models", "promote", "support", "--force", "a hotfix")["event"]
    assert event["gate"] == {"status": "fail", "suite": {"name": "release", "hash": "h"}, "forced": True}
    assert event["overruled"] == "a hotfix"
    assert main(["models", "support"]) == 0
    assert "gate fail, overruled (a hotfix)" in capsys.readouterr().out


def test_what_no_gate_has_judged_is_promoted_with_a_reason_only(artifacts: list[str], capsys: Said) -> None:
    (Path("runs/tickets") / "gate.json").unlink()
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    message = refused(capsys, "models", "promote", "support")
    assert "No gate has judged" in message and "tuneloop gate" in message
    assert read_model(open_registry(), "support").aliases == {"candidate": "1"}
    event = ok(capsys, "models", "promote", "support", "--force", "the first one")["event"]
    assert (event["gate"]["status"], event["gate"]["forced"], event["overruled"]) == ("none", True, "the first one")


def test_a_reason_that_was_not_needed_is_not_kept(artifacts: list[str], capsys: Said) -> None:
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    event = ok(capsys, "models", "promote", "support", "--force", "to be sure")["event"]
    assert (event["gate"]["forced"], event["overruled"]) == (False, "")


def test_weights_in_fewer_bits_need_a_verdict_of_their_own(artifacts: list[str], capsys: Said) -> None:
    folder, run = Path(artifacts[0]), Path("runs/tickets")
    manifest = read_json(folder / "artifact.json")
    rounded = {"name": "q8_0", "tensor_types": {"Q8_0": 14, "F32": 5}, "kl": 0.001}
    write_json(folder / "artifact.json", {**manifest, "format": "gguf", "quantisation": rounded, "measured": True})
    own = run / "evals" / manifest["id"]
    own.mkdir(parents=True)
    shutil.copy(run / "eval.json", own / "eval.json")
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    message = refused(capsys, "models", "promote", "support")  # the run's gate is green
    assert "No gate has judged this version in q8_0" in message and str(folder) in message
    assert evaluation_place("support@candidate") == str(own.resolve()), "the gate reads the file's own figures"
    judged(own)
    assert ok(capsys, "models", "promote", "support")["event"]["gate"]["status"] == "pass"


def test_without_its_run_the_gate_counts_that_the_artifact_was_exported_with(
    artifacts: list[str], capsys: Said
) -> None:
    manifest = read_json(Path(artifacts[0]) / "artifact.json")
    gate = {"status": "fail", "suite": {"name": "release", "hash": "h"}, "forced": True}
    write_json(Path(artifacts[0]) / "artifact.json", {**manifest, "gate": gate})
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    shutil.move("runs/tickets", "gone")
    assert "The gate said fail" in refused(capsys, "models", "promote", "support")
    assert ok(capsys, "models", "promote", "support", "--force", "so it is")["event"]["gate"]["forced"] is True


class Killed(BaseException):
    """As kill -9 would: nothing of the command runs after it."""


@pytest.mark.parametrize("step", range(1, 6))
def test_a_change_that_was_killed_is_reported_and_finished_by_the_next_command(
    step: int, artifacts: list[str], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from tuneloop.registry.registered import promote_version

    two_versions(capsys, artifacts)
    ok(capsys, "models", "promote", "support", "1")  # from here: champion 1, previous 2
    done = 0
    writes = ("set_registered_model_tag", "set_registered_model_alias", "delete_registered_model_tag")

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                raise Killed
            return write(*arguments, **named)

        return call

    with monkeypatch.context() as patched:
        for name in writes:
            patched.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        with pytest.raises(Killed):
            promote_version("support", "2")
    assert done == step
    pending = read_model(open_registry(), "support").pending
    if step == 1:  # nothing was written down: nothing was decided
        assert pending is None
        return
    assert pending is not None and pending.model_version == "2"
    main(["models"])
    assert "interrupted:" in capsys.readouterr().out, "a list of all models changes nothing"
    assert ok(capsys, "models", "rollback", "support")["aliases"]["champion"] == "1"
    model = read_model(open_registry(), "support")
    assert [e.action for e in model.history][-2:] == ["promote", "rollback"] and model.pending is None


KILLED_BETWEEN = """
import os, signal, sys
from mlflow.tracking import MlflowClient
from tuneloop.cli.main import main
moves, real = [], MlflowClient.set_registered_model_alias
def move(*arguments):
    if moves:
        os.kill(os.getpid(), signal.SIGKILL)
    moves.append(arguments)
    return real(*arguments)
MlflowClient.set_registered_model_alias = move
main(["models", "promote", "support", "2", "--json"])
"""


@pytest.mark.slow
def test_kill_9_between_two_aliases_is_repaired_by_the_next_command(artifacts: list[str], capsys: Said) -> None:
    two_versions(capsys, artifacts)
    ok(capsys, "models", "promote", "support", "1")  # from here: champion 1, previous 2
    died = subprocess.run([sys.executable, "-c", KILLED_BETWEEN], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL and not died.stdout, died.stderr
    half = read_model(open_registry(), "support")
    assert half.aliases == {"candidate": "2", "champion": "1", "previous": "1"}, "previous moved, champion did not"
    found = ok(capsys, "models", "support")["models"][0]  # naming it is enough: serve, evaluate and the gate do too
    assert found["aliases"] == {"candidate": "2", "champion": "2", "previous": "1"} and found["pending"] is None
    assert found["history"][-1]["action"] == "promote" and found["history"][-1]["gate"]["status"] == "pass"


def test_a_name_stands_for_what_an_interrupted_change_decided(
    artifacts: list[str], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.registry import versions as registry
    from tuneloop.registry.registered import promote_version

    two_versions(capsys, artifacts)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(registry, "_finish", killed)
        promote_version("support", "1")
    assert read_model(open_registry(), "support").aliases["champion"] == "2"
    assert local_name("support@champion") == str(Path(artifacts[0]).resolve())


def killed(*_: Any) -> None:
    raise Killed


def test_a_version_that_a_killed_register_left_becomes_the_candidate(
    artifacts: list[str], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.registry import versions as registry

    with monkeypatch.context() as patched:
        patched.setattr(registry, "_change", killed)
        with pytest.raises(Killed):
            registry.register(open_registry, Path(artifacts[0]), "support")
    assert read_model(open_registry(), "support").aliases == {}
    assert ok(capsys, "models", "register", artifacts[0], "--name", "support")["aliases"] == ["candidate"]
    assert len(read_model(open_registry(), "support").versions) == 1


def test_an_artifact_that_was_changed_is_neither_registered_nor_promoted(artifacts: list[str], capsys: Said) -> None:
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    for artifact in artifacts:
        (Path(artifact) / "config.json").write_text("{}")
    assert "not as it was exported" in refused(capsys, "models", "register", artifacts[1], "--name", "support")
    assert "not as it was exported" in refused(capsys, "models", "promote", "support")
    shutil.rmtree(artifacts[0])
    assert "files of this version are missing" in refused(capsys, "models", "promote", "support")
    assert read_model(open_registry(), "support").aliases == {"candidate": "1"}


def test_what_is_not_there_is_told_with_what_there_is(artifacts: list[str], capsys: Said) -> None:
    assert "No model 'support'" in refused(capsys, "models", "promote", "support")
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    assert "registered are: support" in refused(capsys, "models", "rollback", "suport")
    assert "it has candidate (version 1)" in refused(capsys, "models", "promote", "support", "9")
    assert "Bad name" in refused(capsys, "models", "register", artifacts[0], "--name", "a/b")
    assert "no artifact here" in refused(capsys, "models", "register", "runs/tickets", "--name", "support")
    assert "not the run of the artifact" in refused(
        capsys, "models", "register", artifacts[0], "--name", "support", "--run", "nowhere"
    )
    Path("mlflow.db").unlink()
    assert "There is no registry here" in refused(capsys, "models")
    assert not Path("mlflow.db").exists(), "asking makes none"


def test_a_registry_that_is_down_is_an_error_with_a_next_step(
    artifacts: list[str], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    for command in (
        ["models", "register", artifacts[0], "--name", "support"],
        ["models"],
        ["models", "promote", "support"],
    ):
        assert "can't be reached" in refused(capsys, *command)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///damaged.db")
    Path("damaged.db").write_text("this is no database " * 100)
    assert "The registry refuses" in refused(capsys, "models")


@pytest.mark.slow
def test_a_locked_registry_is_an_error_and_nothing_is_half_done(
    artifacts: list[str], capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(capsys, "models", "register", artifacts[0], "--name", "support")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{Path('mlflow.db').absolute()}?timeout=1")  # else 20 seconds
    other = sqlite3.connect("mlflow.db")
    other.execute("begin exclusive")
    assert "locked by another process" in refused(capsys, "models", "promote", "support")
    other.rollback()
    assert read_model(open_registry(), "support").aliases == {"candidate": "1"}


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("support@champion", ("support", "champion")),
        ("models:/support@champion", ("support", "champion")),
        ("models:/support/3", ("support", "3")),
        ("runs/mine", None),
        ("org/name", None),
        ("mine.gguf", None),
        ("http://a@b", None),
        ("there@here", None),
    ],
)
def test_names_of_the_registry_are_told_from_others(name: str, wanted: tuple[str, str] | None) -> None:
    Path("there@here").mkdir()
    assert registered_name(name) == wanted


def test_a_registered_version_is_a_target_like_its_folder(artifacts: list[str], tiny_llama: Path, capsys: Said) -> None:
    two_versions(capsys, artifacts)
    assert local_name("support@champion") == str(Path(artifacts[1]).resolve())
    assert local_name("models:/support/1") == str(Path(artifacts[0]).resolve())
    opened = open_with_task("support@previous")
    assert opened.target.kind == "adapter" and opened.local is not None
    direct = load_model(str(tiny_llama), dtype="float32")
    load_trained(direct, Path(artifacts[0]))
    assert opened.local.trained == Path(artifacts[0]).resolve() and opened.local.base == str(tiny_llama)
    with pytest.raises(UserError, match="no version or alias 'nope'"):
        open_with_task("support@nope")


def test_the_gate_and_comparisons_find_a_versions_evaluation(artifacts: list[str], capsys: Said) -> None:
    two_versions(capsys, artifacts)
    assert evaluation_place("support@champion") == str(Path("runs/tickets").resolve())
    assert evaluation_place("runs/tickets:few-shot") == "runs/tickets:few-shot"
    shutil.move("runs/tickets", "gone")
    with pytest.raises(UserError, match="evaluation of this version is not available"):
        evaluation_place("support@champion")


def test_versions_that_an_earlier_tuneloop_registered_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = read_json(unpacked(tmp_path / "kept") / "registry.json")
    registry = open_registry()
    registry.client.create_registered_model("support", tags={k: json.dumps(v) for k, v in kept["model"].items()})
    registry.client.create_model_version("support", "file:///nowhere", tags=kept["version"])
    model = read_model(registry, "support")
    assert model.history[0].who == "anna@desk" and model.versions[0].lineage.artifact == "a1"
    later: JsonSteps = (
        MigrationStep(2, "a field more", lambda tags: {**tags, "licence": "unknown"}),
        MigrationStep(3, "another name", lambda tags: {**{k: v for k, v in tags.items() if k != "format"}, "quantisation": tags["format"]}),
    )  # fmt: skip
    monkeypatch.setattr(
        versions,
        "LINEAGE_STEPS",
        (*later, MigrationStep(4, "back", lambda tags: {**tags, "format": tags["quantisation"]})),
    )
    lineage = read_model(registry, "support").versions[0].lineage
    assert (lineage.licence, lineage.quantisation, lineage.format) == ("unknown", "merged", "merged")
    registry.client.set_model_version_tag("support", "1", "tuneloop.version", "5")
    with pytest.raises(UserError, match="A newer tuneloop wrote version 1 of support: it is of version 5"):
        read_model(registry, "support")


def test_a_registry_of_an_earlier_mlflow_is_brought_up_to_date(tmp_path: Path, capsys: Said) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    file = Path("mlflow.db")
    file.unlink()
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{file.resolve()}")
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(str(engine.url))
    revisions = [revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revisions[5])
    engine.dispose()
    with sqlite3.connect(file) as raw:
        raw.execute("INSERT INTO registered_models (name, creation_time, last_updated_time) VALUES ('support', 1, 1)")
    before = file.read_bytes()
    said: list[str] = []
    with reporting(say=said.append):
        assert [model.name for model in read_models(open_registry())] == ["support"]
        assert [model.name for model in read_models(open_registry())] == ["support"]
    backup = Path(f"mlflow.{revisions[5]}.backup")
    assert len(said) == 1 and backup.name in said[0] and not list(tmp_path.glob("*.tmp"))
    assert backup.read_bytes()[100:] == before[100:]
