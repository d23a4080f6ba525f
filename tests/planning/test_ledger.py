"""The ledger: finished runs are kept, shown, and correct the next prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuneloop.planning.at_hand import MachineAtHand, RunWork, estimate
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.ledger import corrected, history, learned_speed, read_ledger, record_run, usual_speed
from tuneloop.planning.speed import speed_of

HERE = MachineAtHand("cpu: test, 2 cores", 64.0, 1.0, 0.10, 500.0)
WORK = RunWork(steps=10, tokens=100_000, supervised=20_000, val_tokens=30_000, micro_batches=((8, 100, 0),))


def plan() -> dict[str, Any]:
    shape = find_model("smollm2-135m")[1]
    return estimate(shape, WORK, HERE, model="smollm2-135m", rank=16, targets="all-linear")


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "new" / "ledger.jsonl"
    monkeypatch.setenv("TUNELOOP_LEDGER", str(file))
    return file


def grown(factor: float) -> float:
    """The peak in GiB where memory grows by so many times what the formulas say."""
    peak = plan()["memory"]["peak_gib"]
    return HERE.resident_gib + (peak - HERE.resident_gib) * factor


def finish(found: dict[str, Any], memory: float, time: float) -> None:
    """A run that took so many times what the formulas say."""
    raw = plan()
    record_run(found, grown(memory), raw["time"]["hours"] * 60 * time)


def test_two_runs_correct_the_third_and_its_terms_still_add_up() -> None:
    assert corrected(plan()) == plan()
    finish(plan(), 0.8, 1.5)
    assert corrected(plan()) == plan()
    finish(plan(), 0.8, 1.5)
    third = corrected(plan())
    assert third["memory"]["peak_gib"] == pytest.approx(grown(0.8), rel=1e-3)
    assert sum(third["memory"]["terms"].values()) == pytest.approx(third["memory"]["peak_gib"], abs=0.01)
    assert third["time"]["hours"] == pytest.approx(1.5 * plan()["time"]["hours"], rel=1e-3)
    assert any("2 earlier runs" in line for line in third["assumptions"])


def test_a_corrected_prediction_is_kept_as_the_formulas_gave_it() -> None:
    for _ in range(4):  # each corrected by those before: the correction must not run away
        finish(corrected(plan()), 0.8, 1.5)
    for entry in read_ledger():
        assert entry.predicted_gib == pytest.approx(plan()["memory"]["peak_gib"], rel=1e-2)


def test_other_machines_and_methods_teach_nothing() -> None:
    for change in ({"gpu": "NVIDIA L4"}, {"method": "full"}, {"model": "llama-3.2-1b"}):
        for _ in range(3):
            finish({**plan(), **change}, 0.8, 1.5)
    assert corrected(plan()) == plan()


def test_a_torn_line_and_an_early_end_are_no_harm(ledger: Path) -> None:
    record_run(plan(), 2.0, None)
    ledger.write_text(ledger.read_text() + '{"date": "20\n')
    found = history()
    assert len(found["runs"]) == found["memory"]["runs"] == 1
    assert found["time"]["runs"] == 0


def test_no_correction_goes_below_what_is_resident() -> None:
    for _ in range(3):
        finish(plan(), 0.1, 1.0)
    assert corrected(plan())["memory"]["peak_gib"] > HERE.resident_gib


def test_errors_of_earlier_formulas_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        finish(plan(), 0.8, 1.5)
    monkeypatch.setattr("tuneloop.planning.ledger.FORMULAS", 99)
    assert corrected(plan()) == plan()


def job_here(model: str = "smollm2-135m", method: str = "lora", machine: str = HERE.name) -> TrainingSetup:
    gpu = replace(find_gpu("cpu"), name=machine)
    return make_job(model=model, shape=find_model(model)[1], gpu=gpu, method=method, seq_len=256)


def test_the_speed_of_a_run_here_is_what_the_table_goes_by() -> None:
    assert learned_speed(job_here(), read_ledger()) == (speed_of(job_here()), "")
    by_formula = plan()["by_formula"]["tokens_per_second"]
    record_run(plan(), 2.0, 1.0, tokens_per_second=3 * by_formula)
    for job in (job_here(), job_here("smollm2-360m"), job_here(method="full")):  # its own kind first, else any run here
        speed, text = learned_speed(job, read_ledger())
        assert speed.tokens_per_second == pytest.approx(3 * speed_of(job).tokens_per_second, rel=1e-3)
        assert "1 run" in text
    elsewhere = job_here(machine="cpu: another, 64 cores")
    assert learned_speed(elsewhere, read_ledger())[0] == speed_of(elsewhere)


def test_a_gpu_is_known_in_the_ledger_by_its_drivers_name() -> None:
    on_gpu = {**plan(), "gpu": "NVIDIA A100-SXM4-80GB"}
    record_run(on_gpu, 2.0, 1.0, tokens_per_second=0.5 * plan()["by_formula"]["tokens_per_second"])
    job = make_job(model="llama-3.1-8b", shape=find_model("llama-3.1-8b")[1], gpu=find_gpu("a100-80gb"), method="lora")
    assert learned_speed(job, read_ledger())[0].tokens_per_second == pytest.approx(
        0.5 * speed_of(job).tokens_per_second
    )
    h100 = replace(job, gpu=find_gpu("h100-sxm"))
    assert learned_speed(h100, read_ledger())[0] == speed_of(h100)


def test_the_usual_speed_is_that_of_earlier_runs_of_the_same_kind_here() -> None:
    assert usual_speed(plan()) is None
    for speed in (200.0, 300.0, 400.0):
        record_run(plan(), 2.0, 5.0, speed)
    assert usual_speed(plan()) == pytest.approx(300.0)
    assert usual_speed({**plan(), "method": "full"}) is None


def test_a_disturbed_run_teaches_memory_and_no_speed_until_it_is_how_the_machine_is() -> None:
    for speed in (200.0, 300.0):
        record_run(plan(), 2.0, 5.0, speed)
    taught = corrected(plan())["corrected_by"]["time"]
    for number in range(3):
        record_run(plan(), 2.0, 500.0, 1.0, disturbed=True)
        entry = read_ledger()[-1]
        assert entry.disturbed and entry.actual_gib == 2.0 and entry.actual_minutes is None, number
        assert usual_speed(plan()) == pytest.approx(250.0)
        assert corrected(plan())["corrected_by"]["time"] == taught
    record_run(plan(), 2.0, 500.0, 1.0, disturbed=True)
    assert usual_speed(plan()) == pytest.approx(200.0)
