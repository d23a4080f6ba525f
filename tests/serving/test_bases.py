"""Two whole GGUF files next to each other in one server, by real llama.cpp: as an experiment's arms, and one after the other."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapters import write_adapter
from by_day import by_day
from serving_load import Load

from patience import HANG
from serving import ANSWERS, FIELDS, MakeTuned, running
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json
from tuneloop.improve.experiment import command as ab
from tuneloop.improve.experiment.state import read_experiments
from tuneloop.inference.llamacpp.process import installed
from tuneloop.inference.llamacpp.serving import VERSION, WHEEL, LlamaCppEngine
from tuneloop.inference.protocol import BASE, EngineSettings, Served, complete
from tuneloop.inference.request import Request
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.models import Candidate, deployment_of, started
from tuneloop.serving.pool import SeveralBases
from tuneloop.serving.store.store import opened, read_requests

pytestmark = pytest.mark.skipif(not (installed() and installed(WHEEL, VERSION)), reason="llama.cpp is not installed")
TURNS = [{"role": "user", "content": json.dumps({"subject": "a", "body": "where is it"})}]
QUESTION = {"messages": TURNS, "max_tokens": 6}
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def two_files(tiny_llama: Path, tmp_path: Path) -> list[Path]:
    """Two whole GGUF files of other weights."""
    from tuneloop.models.chat.template import load_template
    from tuneloop.release.gguf.convert import About, write_gguf
    from tuneloop.release.tuned_weights import open_tuned

    files = [tmp_path / "first.gguf", tmp_path / "second.gguf"]
    for seed, file in enumerate(files, 1):
        tuned = open_tuned(str(tiny_llama), write_adapter(tiny_llama, tmp_path / f"adapter-{seed}", seed))
        write_gguf(tuned, load_template(tiny_llama), file, "f32", About(file.stem))
    return files


@pytest.fixture
def two_artifacts(make_tuned: MakeTuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """GGUF artifacts of two runs with other adapters, and a LoRA file of the second one."""
    from tuneloop.release.export import export_run

    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    artifacts = []
    for number, name in enumerate(("first", "second")):
        run = make_tuned(ANSWERS, data=FIELDS, name=f"runs/{name}", targets=["all-linear", "attention"][number])
        write_json(run / "run.json", {**read_json(run / "run.json"), "id": name, "key": str(number) * 64})
        (run / "eval.json").unlink()  # of no test rows: nothing to be held to
        for form in ("gguf", "gguf-lora")[: number + 1]:
            artifacts.append(export_run(run, form).folder)  # type: ignore[arg-type]
    return [Path(shutil.move(folder, tmp_path / name)) for folder, name in zip(artifacts, "abc", strict=True)]


def engine(file: Path) -> LlamaCppEngine:
    return LlamaCppEngine(Served(str(file)), (), EngineSettings(slots=2, context=512, threads=1))


def test_each_base_answers_as_it_does_alone_and_a_strange_name_as_neither(two_files: list[Path]) -> None:
    asked = Request(messages=TURNS, max_new_tokens=12)

    async def alone(file: Path) -> str:
        item = engine(file)
        await item.start()
        answer = (await complete(item, asked)).text
        await item.stop()
        return answer

    async def together() -> tuple[list[str], dict[str, str]]:
        both = SeveralBases(engine(two_files[0]), {"b" * 64: engine(two_files[1])})
        await both.start()
        try:
            names = {name: facts.source for name, facts in both.adapters.items()}
            names_asked = [BASE, "b" * 64, BASE, "0" * 64]
            answers = await asyncio.gather(*(complete(both, Request(messages=TURNS, max_new_tokens=12, adapter=name)) for name in names_asked))  # fmt: skip
            assert answers[1].adapter == "b" * 64 and "no_adapter" in answers[3].error
            assert await both.render(TURNS, adapter="b" * 64) == await both.render(TURNS)
            return [answer.text for answer in answers[:3]], names
        finally:
            await both.stop()

    first, second = asyncio.run(alone(two_files[0])), asyncio.run(alone(two_files[1]))
    answers, names = asyncio.run(together())
    assert first != second and answers == [first, second, first] and names == {"b" * 64: str(two_files[1])}


def test_a_second_base_that_does_not_start_leaves_no_process(two_files: list[Path]) -> None:
    broken = two_files[0].parent / "broken.gguf"
    broken.write_bytes(two_files[1].read_bytes().replace(b"output_norm", b"output_nome"))
    first = engine(two_files[0])
    with pytest.raises(UserError, match=r"llama\.cpp"):
        asyncio.run(SeveralBases(first, {"b" * 64: engine(broken)}).start())
    assert first.process is None


def test_candidates_that_can_not_be_served_are_left_out_with_the_way_out(
    two_artifacts: list[Path], two_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other, lora = two_artifacts
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(two_files[0].read_bytes()[:-100_000])

    def deployed(served: Path, candidate: Path) -> Any:
        config = ServeConfig(adapters={"m": str(served)}, folder=str(tmp_path / "s"))
        return deployment_of(config, {"try": Candidate("m", str(candidate))})

    assert "tuneloop export RUN --format gguf" in deployed(whole, lora).left_out["try"]
    assert "ends before its last weights" in deployed(whole, cut).left_out["try"]
    assert isinstance(deployed(whole, other).engine, SeveralBases)
    with_lora = deployed(two_files[0], lora)  # a file that was not tuned here may be its base
    assert with_lora.left_out == {} and isinstance(with_lora.engine, LlamaCppEngine)
    monkeypatch.setattr("tuneloop.serving.models.memory_left", lambda: 0.0)
    assert "memory of its own" in deployed(whole, other).left_out["try"]


def test_all_weights_that_were_trained_are_a_candidate_next_to_an_adapter(
    make_tuned: MakeTuned, tmp_path: Path
) -> None:
    adapter = make_tuned(ANSWERS, data=FIELDS, name="answers")
    whole = make_tuned(ANSWERS, data=FIELDS, name="whole", method="full")
    config = ServeConfig(adapters={"m": str(adapter)}, folder=str(tmp_path / "s"), canaries=0)

    async def answers() -> list[str]:
        deployment = await started(config, {"try": Candidate("m", str(whole))})
        alone = await started(config.model_copy(update={"adapters": {"m": str(whole)}}), {})
        try:
            served, candidate = deployment.models()["m"], deployment.candidate_models()["try"]
            assert candidate.read is not None and deployment.left_out == {}
            names = [(deployment, served), (deployment, candidate), (alone, alone.models()["m"])]
            return [
                (await complete(entry.engine, Request(messages=TURNS, max_new_tokens=8, adapter=model.adapter))).text
                for entry, model in names
            ]
        finally:
            await deployment.engine.stop()
            await alone.engine.stop()

    item, candidate, alone = asyncio.run(answers())
    assert item != candidate == alone


def test_a_server_starts_without_a_candidate_with_which_it_does_not(two_files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(two_files[1].read_bytes().replace(b"output_norm", b"output_nome"))
    config = ServeConfig(adapters={"m": str(two_files[0])}, folder=str(tmp_path / "s"), slots=2, context=512)

    async def work() -> tuple[Any, str]:
        deployment = await started(config, {"try": Candidate("m", str(bad))})
        try:
            return deployment, (await complete(deployment.engine, Request(messages=TURNS, max_new_tokens=8))).error
        finally:
            await deployment.engine.stop()

    deployment, error = asyncio.run(work())
    assert not error and not deployment.candidates and "llama.cpp" in deployment.left_out["try"]


# --- a server ------------------------------------------------------------------------------------------


def children(process: subprocess.Popen[str]) -> set[int]:
    """Processes that a process has started."""
    tasks = Path(f"/proc/{process.pid}/task")
    found = [int(pid) for task in tasks.glob("*/children") for pid in task.read_text().split()]
    return {pid for pid in found if "llamacpp" in Path(f"/proc/{pid}/cmdline").read_text()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], Any], message: str) -> Any:
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(message)


def releases(address: str, users: int = 12) -> Counter[str]:
    """Who answers users, by the header that names it."""
    found: Counter[str] = Counter()
    for user in range(users):
        reply = httpx.post(f"{address}/v1/chat/completions", json={**QUESTION, "user": f"u{user}"}, timeout=HANG)
        assert reply.status_code == 200, reply.text
        found[reply.headers["x-tuneloop-release"]] += 1
    return found


@contextmanager
def served(source: Path | str, folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, Any]]:
    settings = ("slots=2", "context=512", "objective.admission=queue", 'keys.open_rights=["users"]')
    with running(f"{source}", *settings, folder=folder, environment=environment) as server:
        yield server


def start(cli: Cli, folder: Path, name: str, candidate: Path, model: str) -> subprocess.CompletedProcess[str]:
    settings = ("--model", model, "--candidate", str(candidate), "--no-shadow", "--ramp", "50,100")
    return cli("ab", "start", name, *settings, "--store", str(folder), "--json")


@pytest.mark.slow
def test_two_files_are_the_arms_of_an_experiment_and_no_request_is_lost(
    two_files: list[Path], tmp_path: Path, cli: Cli, cli_environment: dict[str, str]
) -> None:
    folder, (first, second) = tmp_path / "serve", two_files
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(second.read_bytes().replace(b"output_norm", b"output_nome"))  # llama.cpp finds it when it loads
    with served(first, folder, cli_environment) as (address, process), Load(address, QUESTION, rate=6) as load:
        done = start(cli, folder, "damaged", bad, "first.gguf")
        assert done.returncode == 2 and "can't serve the candidate" in done.stderr and "stopped" in done.stderr
        assert read_experiments(folder)["damaged"].ended == "stopped"
        assert releases(address).keys() == {"base"} and len(children(process)) == 1
        done = start(cli, folder, "try", second, "first.gguf")
        assert done.returncode == 0 and json.loads(done.stdout)["loaded"] is True, done.stderr
        arms = releases(address)
        assert len(arms) == 2 and len(until(lambda: len(children(process)) == 2 and children(process), "two files"))
        said = read_json(folder / "state.json")["candidates"]
        assert said["try"] == "" and "llama.cpp" in said["damaged"]
        checked = cli("ab", "check", "try", "--store", str(folder), "--json")
        assert checked.returncode == 3 and json.loads(checked.stdout)["note"] == ""
        assert cli("ab", "stop", "try", "--store", str(folder)).returncode == 0
        until(lambda: len(children(process)) == 1, "the candidate's process ends with the experiment")
        assert releases(address).keys() == {"base"}
    assert not load.faults
    with opened(folder) as store:
        kept = list(read_requests(store))
    assert len(kept) == len(load.found) + 3 * 12 and not any(item.error for item in kept)
    assert {item.arm for item in kept if item.adapter} == {"candidate"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", by_day(["candidate", "server"], ["server"]))
def test_a_kill_in_the_middle_of_a_swap_harms_nothing(
    victim: str, two_files: list[Path], tmp_path: Path, cli: Cli, cli_environment: dict[str, str]
) -> None:
    folder, (first, second) = tmp_path / "serve", two_files
    settings = {"model": "first.gguf", "candidate": str(second), "champion": "-", "shadow": False, "ramp": "50,100"}
    command = [sys.executable, "-m", "tuneloop", "serve", str(first), "port=0", f"folder={folder}", "--json", "-q",
               "slots=2", "context=512", 'keys.open_rights=["users"]']  # fmt: skip
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=cli_environment)
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["address"]
    (old,) = children(process)
    before = releases(address, 3)
    ab.start(folder, "try", settings)
    if victim == "candidate":
        new = until(lambda: children(process) - {old}, "the swap begins")
        os.kill(new.pop(), signal.SIGKILL)
        until(lambda: read_json(folder / "state.json").get("candidates"), "the server says what came of it")
        assert releases(address).keys() == before.keys() == {"base"}
        assert read_json(folder / "state.json")["candidates"]["try"]
        done = cli("ab", "check", "try", "--store", str(folder))
        assert done.returncode == 2 and "No one meets the candidate" in done.stderr
    else:
        pids = {old} | until(lambda: children(process) - {old}, "the swap begins")
    process.kill()
    process.wait()
    if victim == "server":
        until(lambda: not any(map(alive, pids)), "what llama.cpp runs ends with the server")
    with served(first, folder, cli_environment) as (address, _):  # it has the candidate from the start
        assert len(releases(address)) == 2
    with opened(folder) as store:
        assert len(list(read_requests(store))) == (27 if victim == "candidate" else 15)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_promotion_swaps_from_one_file_to_the_other_under_load(
    two_artifacts: list[Path], tmp_path: Path, cli: Cli, cli_environment: dict[str, str]
) -> None:
    whole, other, lora = map(str, two_artifacts)
    folder = tmp_path / "serve"

    def ok(*text: str) -> Any:
        done = cli(*text, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    ok("models", "register", whole, "--name", "answers")
    ok("models", "promote", "answers", "--force", "no gate in this test")
    with served("answers@champion", folder, cli_environment) as (address, _):
        with Load(address, QUESTION, rate=6) as load:
            ok("models", "register", lora, "--name", "answers")
            refused = cli("models", "promote", "answers")
            assert refused.returncode == 2 and "is a LoRA file" in refused.stderr and "--format gguf" in refused.stderr
            no_arm = cli("ab", "start", "lora", "--model", "answers", "--candidate", lora, "--store", str(folder))
            assert no_arm.returncode == 2 and "tuneloop export RUN --format gguf" in no_arm.stderr
            assert "lora" not in read_experiments(folder)
            ok("models", "register", other, "--name", "answers")
            ok("models", "promote", "answers", "--force", "no gate in this test")
            until(lambda: load.found and load.found[-1][0] == "answers/3", "the server follows the alias")
            ok("models", "rollback", "answers")
            until(lambda: load.found[-1][0] == "answers/1", "and follows it back")
        assert not load.faults and {release for release, _ in load.found} == {"answers/1", "answers/3"}
        said = {release: text for release, text in load.found}
        assert {text for release, text in load.found if release == "answers/1"} == {said["answers/1"]}
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(next(Path(other).glob("*.gguf")).read_bytes()[:-50_000])
        refused = cli("deploy", str(broken), "--name", "answers", "--to", str(folder))
        assert refused.returncode == 1 and "ends before its last weights" in refused.stdout + refused.stderr
        assert releases(address).keys() == {"answers/1"}
    with served("answers@champion", folder, cli_environment) as (address, _):
        assert releases(address).keys() == {"answers/1"}, "what was refused is not started with"
