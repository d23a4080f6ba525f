"""Folders of runs that someone else made are read within limits: no command hangs, fails, or shows what is outside them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
OUTSIDE = "a text that is outside of the run"
SECONDS = 120  # for one command; what hangs takes for ever
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)


def link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent.parent / "outside")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def text(value: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.write_text(value)

    return write


def forged(**values: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return write


DEEP = text("[" * 200_000)
LONG = text('{"version": 1, "steps": ' + "9" * 400_000 + "}")
CASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "bomb": ("config.yaml", text(BOMB)),
    "config-link": ("config.yaml", link),
    "config-pipe": ("config.yaml", pipe),
    "config-device": ("config.yaml", device),
    "config-code": ("config.yaml", text("model: !!python/object/apply:os.system ['touch ran']\n")),
    "config-controls": ("config.yaml", text('name: "\\e]0;title\\a"\nmodel: "\\e[31m"\n')),
    "run-deep": ("run.json", DEEP),
    "run-digits": ("run.json", LONG),
    "run-pipe": ("run.json", pipe),
    "run-types": ("run.json", forged(id=[1], model={"a": 1}, steps="many", method=None)),
    "run-names": ("run.json", forged(id="../../outside", dataset="../../outside", model="../outside")),
    "run-version": ("run.json", forged(version=10**30)),
    "samples-link": ("samples.jsonl", link),
    "samples-pipe": ("samples.jsonl", pipe),
    "eval-deep": ("eval.json", DEEP),
    "eval-types": ("eval.json", text('{"version": 1, "metrics": [1], "n": {}, "words": 3, "model": []}')),
    "eval-infinite": ("eval.json", text('{"version": 1, "n": 1e999, "metrics": {"accuracy": {"value": NaN}}}')),
    "weights-link": ("adapter/adapter_model.safetensors", link),
    "weights-pipe": ("adapter/adapter_model.safetensors", pipe),
    "adapter-deep": ("adapter/adapter_config.json", DEEP),
    "data-link": ("dataset/test.jsonl", link),
    "data-pipe": ("dataset/test.jsonl", pipe),
    "data-manifest": ("dataset/dataset.json", text('{"version": 1, "splits": {"test": "../../outside"}, "id": 7}')),
    "task-deep": ("task.json", DEEP),
    "artifact-deep": ("artifact.json", DEEP),
    "artifact-pipe": ("artifact.json", pipe),
    "artifact-link": ("artifact.json", link),
    "artifact-names": ("artifact.json", forged(files={"../outside": {"bytes": 1, "sha256": "0" * 64}}, id="../x")),
    "artifact-types": ("artifact.json", forged(files=[1], run="x", gate=7, base=None)),
    "artifact-weights": ("adapter_model.safetensors", link),
    "artifact-tokenizer": ("tokenizer.json", pipe),
}
COMMANDS = {
    "evaluate": ("evaluate", "run", "limit=2", "-o", "made"),
    "compare": ("compare", "run", "other", "-o", "made"),
    "gate": ("gate", "run", "--against", "other", "--suite", "suite.yaml"),
    "export": ("export", "run", "--format", "adapter", "--out", "made"),
    "merge": ("merge", "run", "other", "--out", "made"),
    "predict": ("predict", "run", "rows.jsonl", "--out", "made.jsonl"),
    "review": ("review", "run", "--no-serve", "-o", "made"),
    "chat": ("chat", "run"),
    "resume": ("run", "run/config.yaml"),
}
ARTIFACT_COMMANDS = {
    "verify": ("models", "verify", "artifact"),
    "register": ("models", "register", "artifact", "--name", "m"),
    "predict": ("predict", "artifact", "rows.jsonl", "--out", "made.jsonl"),
    "push": ("models", "push", "artifact", "hub:org/name"),
}
EACH = [  # the others take minutes together
    pytest.param(case, marks=[] if case in ("bomb", "config-pipe", "artifact-names") else pytest.mark.nightly)
    for case in CASES
]


@pytest.fixture
def in_time() -> Iterator[None]:
    """Ends what hangs, again and again where the command catches it; the test fails either way."""
    late = []

    def end(*_: Any) -> None:
        late.append(1)
        raise AssertionError("it takes too long")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    assert not late, "a command hung"


@pytest.mark.parametrize("case", EACH)
def test_a_strangers_run_is_read_within_limits_or_refused(
    case: str, make_tuned: Any, tmp_path: Path, cli: Any, in_time: None
) -> None:
    make_tuned()
    make_tuned(name="other")
    for folder in ("run", "other"):
        assert cli("evaluate", folder, "limit=2", "--json").returncode == 0
    (tmp_path / "suite.yaml").write_text("version: 1\nname: s\nmetrics: [{metric: accuracy, margin: 0.9}]\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "late parcel"}) + "\n")
    (tmp_path / "outside").write_text(json.dumps({"prompt": OUTSIDE, "model": OUTSIDE, "version": 1}) + "\n")
    assert cli("export", "run", "--format", "adapter", "--out", "artifact", "--json").returncode == 0
    name, change = CASES[case]
    kept = {folder: (tmp_path / folder).rename(tmp_path / f"whole-{folder}") for folder in ("run", "artifact")}
    commands = ARTIFACT_COMMANDS if case.startswith("artifact") else COMMANDS
    for command, sentence in commands.items():
        for folder, source in kept.items():
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
            shutil.copytree(source, tmp_path / folder)
            if (source / name).exists():
                change(tmp_path / folder / name)
        done = cli(*sentence, "--json")
        print(case, command, done.returncode, (done.stdout + done.stderr)[-300:])
        assert done.returncode in (0, 1, 2, 3), (command, done)
        assert OUTSIDE not in done.stdout + done.stderr, command
        assert "should not happen" not in done.stdout + done.stderr, (command, done)
        assert "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stderr, command
        assert not (tmp_path / "ran").exists()
        made = [path for path in tmp_path.rglob("made*") if path.is_file()]
        assert not any(OUTSIDE.encode() in path.read_bytes() for path in made), command
        for path in tmp_path.glob("made*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
