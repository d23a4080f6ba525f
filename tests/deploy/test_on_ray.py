"""A Ray cluster of two nodes does what one process does: the same rows, losses and answers, whatever is killed there.

Minutes: `make test-ray`. Functions of this file go to the cluster by value.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_stand_in

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.core.object_store import open_store
from tuneloop.core.ray.driver import drive
from tuneloop.core.ray.training import Workers, train_on_ray
from tuneloop.core.ui import reporting, say
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import prepare_dataset
from tuneloop.data.process_record import ChunkFacts, ChunkWork, RowProcessor, TokenCount, process_chunk
from tuneloop.deploy import on_ray
from tuneloop.deploy.clusters import RayOptions
from tuneloop.deploy.on_ray import RayRun, run_on_ray
from tuneloop.evaluation.config import EvalOptions
from tuneloop.pipeline import evaluate
from tuneloop.pipeline.evaluate import evaluate_target
from tuneloop.pipeline.sweep import search_of, sweep
from tuneloop.pipeline.train import train_alone
from tuneloop.recipe import Recipe, make_recipe
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.records.rows import Row
from tuneloop.serving.batch import command as batch
from tuneloop.serving.batch.command import BatchInput, answer_batch
from tuneloop.serving.server import serve_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("TUNELOOP_RAY"), reason="minutes: make test-ray"),
]

if os.environ.get(
    "TUNELOOP_RAY"
):  # Ray reads these when it is first imported: only who has this token gets into the cluster
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["TUNELOOP_DTYPE"] = "float32"  # in bf16 a sum in another order differs by a percent


@pytest.fixture(scope="module")
def cluster(cli_environment: dict[str, str]) -> Iterator[Any]:
    """Two nodes on this machine with a processor each and a bucket that both know, and this process connected to them."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, s3_stand_in.s3_store(patch):
        yield from _cluster(ray, cli_environment)


NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}


def _cluster(ray: Any, cli_environment: dict[str, str]) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = cli_environment["PYTHONPATH"]  # of the processes on the nodes
    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    found.second = found.add_node(**NODE)
    ray.init(address=found.address, log_to_driver=False, configure_logging=False, namespace="tuneloop")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield found
    ray.shutdown()
    found.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"), 60)
    values = {
        "name": "rows", "model": str(tiny_llama), "data": {"sources": ["rows.jsonl"], "split": {"val": 0.2}},
        "train": {"epochs": 6, "rows_per_step": 8, "rank": 4, "checkpoint_steps": 2}, "evaluate": {"limit": 6},
        "baselines": {"few_shot": 0}, "track": {"report_to": []},
    }  # fmt: skip
    return make_recipe(values)


def write_rows(path: Path, number: int) -> Path:
    rows = [
        {"text": f"The {'late' if n % 2 else 'early'} parcel number {n} of {n * 7}", "label": "ab"[n % 2]}
        for n in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def losses(folder: Path) -> list[float]:
    return [r[key] for r in read_jsonl(folder / "metrics.jsonl") for key in ("loss", "val_loss") if key in r]


def once(marker: Path) -> bool:
    """Whether nobody has come here before."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- preparing -------------------------------------------------------------------------------------


def count_words(row: Row) -> TokenCount:
    return TokenCount(sum(len(m["content"].split()) for m in row.messages) + 5, 3)


def process_or_die(work: ChunkWork, processor: RowProcessor) -> ChunkFacts:
    if processor.config.labels is None and work.source and once(Path(work.source).with_name("killed")):
        die()
    return process_chunk(work, processor)


def test_both_passes_give_the_hash_of_one_process_and_a_killed_worker_costs_nothing(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "rows.jsonl"
    write_rows(source, 900)
    source.write_text(source.read_text() + source.read_text().replace("parcel", "parcels"))
    monkeypatch.setattr("tuneloop.data.prepare.SMALL", 0)
    monkeypatch.setattr("tuneloop.data.prepare.CHUNK", 20_000)
    monkeypatch.setattr("tuneloop.data.prepare.MEASURED_ROWS", 100_000)

    def prepared(engine: Any, out: str) -> Any:
        config = PrepareConfig(sources=[str(source)], engine=engine, workers=2, allow_rejects=1.0)
        return prepare_dataset(config, name="rows", seed=0, out=tmp_path / out, measure=count_words).manifest

    alone = prepared("processes", "alone")
    assert alone.counts.rejected > 100  # near copies: the second pass had something to compare

    def here(*_: Any) -> Any:
        raise AssertionError("texts were compared in this process")

    monkeypatch.setattr("tuneloop.data.prepare.process_chunk", process_or_die)
    monkeypatch.setattr("tuneloop.data.dedup.duplicates.verify", here)
    monkeypatch.setattr("tuneloop.data.prepare.measured_if_long", here)
    far = prepared("ray", "far")
    assert (tmp_path / "killed").exists()
    assert far.hash == alone.hash and far.splits == alone.splits and far.checks == alone.checks


def test_the_command_that_prepares_works_on_the_cluster_with_the_same_hash(
    cluster: Any, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 200)
    hashes = []
    for more in ([], ["--on", "ray"]):
        done = cli("prepare", str(source), "--json", "-o", f"out{len(hashes)}", *more)
        assert done.returncode in (0, 1), done.stderr
        hashes.append(json.loads(done.stdout)["hash"])
    assert hashes[0] == hashes[1]


# --- training --------------------------------------------------------------------------------------


def dying(job: RayRun) -> None:
    """As `take_part`, but the second process is killed once after the fifth step."""
    if os.environ["RANK"] == "1":

        def watch() -> None:
            while True:
                time.sleep(0.01)
                if len(losses_so_far(Path(job.folder))) >= 5 and once(Path(job.folder) / "killed"):
                    die()

        threading.Thread(target=watch, daemon=True).start()
    on_ray_take_part(job)


on_ray_take_part = on_ray.take_part


def losses_so_far(folder: Path) -> list[str]:
    file = folder / "metrics.jsonl"
    return [line for line in file.read_text().splitlines() if '"loss"' in line] if file.is_file() else []


@pytest.mark.parametrize("store", ["", f"s3://{s3_stand_in.BUCKET}/runs/far"], ids=["disk", "s3"])
def test_a_killed_process_resumes_and_the_losses_are_those_of_one(
    cluster: Any, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    _, alone = train_alone(recipe.model_copy(update={"output_dir": "alone"}))
    monkeypatch.setattr(on_ray, "take_part", dying)
    said: list[str] = []
    own = recipe.model_copy(update={"output_dir": "far", "store": store})
    with reporting(say=said.append):
        folder = run_on_ray(own, RayOptions(on="ray", nodes=2), whole=False)
    assert (folder / "killed").exists() and any("continued from the checkpoint" in line for line in said), said
    assert any("2 processes train" in line for line in said)
    assert losses(folder) == pytest.approx(losses(tmp_path / "alone"), rel=2e-3, abs=1e-4)
    assert read_json(folder / "run.json")["best_val_loss"] == pytest.approx(alone.best_val_loss, rel=2e-3)
    if store:
        there = open_store(store).sizes()
        assert {"run.json", "adapter/adapter_model.safetensors", "dataset/train.jsonl"} <= set(there)
        assert any(name.startswith(".ray/") for name in there), "Ray's own records are there too"


def refuses(setting: Any) -> None:
    say("about to refuse")
    raise UserError("The rows are bad", where="row 7", next_step="mend it")


def test_what_the_user_can_put_right_is_not_tried_again_and_arrives_as_it_was(cluster: Any, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="The rows are bad") as caught, reporting(say=said.append):
        train_on_ray("refused", refuses, None, Workers(1, False, str(tmp_path / "ray")))
    assert (caught.value.where, caught.value.next_step) == ("row 7", "mend it")
    assert said == ["about to refuse"]


# --- answering -------------------------------------------------------------------------------------


@pytest.fixture
def trained(recipe: Recipe) -> Path:
    short = recipe.model_copy(
        update={"output_dir": "run", "train": recipe.train.model_copy(update={"epochs": 1.0, "learning_rate": 0.01})}
    )
    return train_alone(short)[0].resolve()


real_asker, real_batch_actor = evaluate._actor, batch._actor


def asker_or_die(setting: Any) -> Any:
    answer = real_asker(setting)

    def killed_once(places: list[int]) -> Any:
        if places[0] > 0 and once(setting[2] / "killed"):
            die()
        return answer(places)

    return killed_once


def test_an_evaluation_by_actors_has_the_answers_of_one_process_though_one_is_killed(
    cluster: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EvalOptions(split="train")
    alone = evaluate_target(str(trained), options.model_copy(update={"out": "alone"}), ["limit=30"]).folder
    monkeypatch.setattr(evaluate, "_actor", asker_or_die)
    far = evaluate_target(str(trained), options.model_copy(update={"out": "far", "on": "ray"}), ["limit=30"]).folder
    assert (trained / "killed").exists()
    item, other = (read_record(EvaluationManifest, folder) for folder in (alone, far))
    assert item.n == other.n == 30 and item.metrics.keys() == other.metrics.keys()
    for name, metric in item.metrics.items():
        # Rows stand in other batches, so that probabilities differ in their last digits; what is counted does not.
        assert other.metrics[name].value == pytest.approx(metric.value, rel=1e-5), name
    first, second = ([(r["id"], r["prediction"]) for r in read_jsonl(f / "samples.jsonl")] for f in (alone, far))
    assert first == second


async def batch_actor_or_die(setting: Any) -> Any:
    answer = await real_batch_actor(setting)
    marker = Path(next(iter(setting[0].adapters.values()))) / "killed-batch"

    async def killed_once(line: Any) -> Any:
        if line.number == 7 and once(marker):
            die()
        return await answer(line)

    return killed_once


def test_a_batch_by_actors_answers_each_row_once_though_one_is_killed(
    cluster: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rows(tmp_path / "asked.jsonl", 20)
    config = serve_config([str(trained)], [])
    alone = answer_batch(BatchInput(source, tmp_path / "alone.jsonl"), config)
    monkeypatch.setattr(batch, "_actor", batch_actor_or_die)
    far = answer_batch(BatchInput(source, tmp_path / "far.jsonl", rows=4, on="ray"), config)
    assert (trained / "killed-batch").exists()
    assert far["completed"] == alone["completed"] == 20 and far["failed"] == 0

    def answers(name: str) -> list[tuple[str, str]]:
        found = read_jsonl(tmp_path / name)
        return [(r["custom_id"], r["response"]["body"]["choices"][0]["message"]["content"]) for r in found]

    assert answers("far.jsonl") == answers("alone.jsonl")


# --- searching -------------------------------------------------------------------------------------


def test_a_search_trains_side_by_side_and_ends_the_worse_ones(cluster: Any, recipe: Recipe, tmp_path: Path) -> None:
    search, _ = search_of(["train.learning_rate=1e-7,1e-3,1e-2,1e-8"], 0, 0)
    found = sweep(recipe, search, tmp_path / "sweep", on="ray", evaluate=False)
    assert len(found.trials) == 4 and found.best is not None
    assert float(found.best["train.learning_rate"]) >= 1e-3
    whole = [trial for trial in found.trials if trial.share == 1.0]
    assert found.best == min(whole, key=lambda trial: trial.val_loss or 0.0).settings
    assert len(whole) < 4  # ASHA ended at least one
    again = sweep(recipe, search, tmp_path / "sweep", on="ray", evaluate=False)
    assert again == found


# --- from outside ----------------------------------------------------------------------------------


def slow_work(setting: Any, folder: Path) -> None:
    say("begun")
    while not Path(setting).exists():
        time.sleep(0.05)
    (folder / "result.txt").write_text((folder / "dataset" / "rows.jsonl").read_text())


def test_a_driver_stays_when_its_client_leaves_and_the_same_command_finds_it(cluster: Any, tmp_path: Path) -> None:
    import ray

    data, go = tmp_path / "data", tmp_path / "go"
    data.mkdir()
    (data / "rows.jsonl").write_text("x" * (9 << 20))  # more than one part
    places = {"data": data, "remote": str(tmp_path / "there"), "local": tmp_path / "here"}

    def leave(line: str) -> None:
        if line == "begun":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reporting(say=leave):
        drive(ray, "job", slow_work, str(go), **places)  # type: ignore[arg-type]
    said: list[str] = []
    threading.Timer(1.0, go.touch).start()
    with reporting(say=said.append):
        drive(ray, "job", slow_work, str(go), **places)  # type: ignore[arg-type]
    assert "followed" in said[0] and "begun" in said
    assert (tmp_path / "here" / "result.txt").read_text() == "x" * (9 << 20)
    with pytest.raises(ValueError, match="Failed to look up"):  # nothing is left running
        deadline = time.monotonic() + 20 * slowness()
        while time.monotonic() < deadline:
            ray.get_actor("job")
            time.sleep(0.2)


# --- the last ones: they lose a node ----------------------------------------------------------------


def stays_until_it_has_grown(folder: str) -> None:
    """Notes how many processes there are, and ends when there are two again after there was one."""
    sizes, size = Path(folder) / "sizes", os.environ["WORLD_SIZE"]
    before = sizes.read_text().split() if sizes.exists() else []
    if os.environ["RANK"] == "0":
        with sizes.open("a") as file:
            file.write(f"{size}\n")
    say(f"there are {size}")
    while not (size == "2" and "1" in before):
        time.sleep(0.1)


def test_a_machine_that_comes_back_takes_part_again(cluster: Any, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes"

    def until(size: str) -> None:
        deadline = time.monotonic() + 180 * slowness()
        while size not in (sizes.read_text().split() if sizes.exists() else []) and time.monotonic() < deadline:
            time.sleep(0.1)

    workers, said = Workers(2, False, str(tmp_path / "ray")), list[str]()
    training = threading.Thread(
        target=train_on_ray, args=("grows", stays_until_it_has_grown, str(tmp_path), workers, said.append)
    )
    training.start()
    until("2")
    cluster.remove_node(cluster.second, allow_graceful=False)
    until("1")
    cluster.second = cluster.add_node(**NODE)  # which sets a signal's handler: only the main thread may
    training.join(300 * slowness())
    assert sizes.read_text().split() == ["2", "1", "2"]
    assert said == ["there are 2", "there are 1", "there are 2"]


def test_a_machine_that_is_lost_for_good_leaves_the_run_to_the_others(
    cluster: Any, recipe: Recipe, tmp_path: Path
) -> None:
    train_alone(recipe.model_copy(update={"output_dir": "alone"}))
    own = recipe.model_copy(update={"output_dir": "far"})
    over = threading.Event()

    def lose() -> None:
        while not over.is_set():
            if len(losses_so_far(tmp_path / "far")) >= 5:
                cluster.remove_node(cluster.second, allow_graceful=False)
                return
            time.sleep(0.01)

    losing = threading.Thread(target=lose)
    losing.start()
    said: list[str] = []
    try:
        with reporting(say=said.append):
            folder = run_on_ray(own, RayOptions(on="ray", nodes=2), whole=False)
    finally:
        over.set()
        losing.join()
    assert losses(folder) == pytest.approx(losses(tmp_path / "alone"), rel=2e-3, abs=1e-4)
