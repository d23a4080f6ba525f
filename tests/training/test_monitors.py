"""The monitors name what was spoiled, on real curves and made ones, and are silent about what is healthy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BEGIN_OF_TEXT

from tuneloop.training.config import usual_rate
from tuneloop.training.monitors import KINDS, MonitorFacts, Monitors, TrainingFinding, guess_loss, remedies, spread

CURVES = sorted((Path(__file__).parent / "curves").glob("*.jsonl"))
# What a spoiled run must be named as: one of these, and nothing outside of the second set.
EXPECTED = {
    "learning_rate": ({"learning_rate_too_high", "divergence"}, {"gradient_explosion"}),
    "low learning_rate": ({"learning_rate_too_low"}, set()),
    "labels": ({"plateau", "overfitting"}, {"memorising", "spike"}),
    "tokens": ({"spike"}, {"gradient_explosion"}),
    "answers of a batch": ({"spike"}, {"gradient_explosion"}),
    "passes": ({"overfitting"}, set()),
    "repetition": ({"memorising", "overfitting"}, set()),
}


def read_curve(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    head, *records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return head, records


def facts_of(head: dict[str, Any], records: list[dict[str, Any]]) -> MonitorFacts:
    made = {"learning_rate": 5e-4, "epochs": 1.0, "rows_per_step": 8, "max_grad_norm": 1.0, "dropout": 0.0, **head["settings"]}  # fmt: skip
    named = {key: made[key] for key in ("learning_rate", "epochs", "rows_per_step", "max_grad_norm", "dropout")}
    return MonitorFacts(total_steps=max(r["step"] for r in records), rows=head["training_rows"],
                 usual_rate=usual_rate(made.get("method", "lora"), "supervised"),
                 guess_loss=head.get("guess_loss"), **named)  # fmt: skip


def watch(records: Iterable[dict[str, Any]], facts: MonitorFacts | None = None) -> list[TrainingFinding]:
    monitors = Monitors(facts or MonitorFacts())
    return [found for record in records for found in monitors.feed(record, [f"row-{record['step']}"])]


def kinds(found: Iterable[TrainingFinding]) -> list[str]:
    return [finding.kind for finding in found]


# --- real runs


def test_there_are_ten_healthy_curves_and_every_spoiled_kind() -> None:
    spoiled = [read_curve(path)[0]["spoiled"] for path in CURVES]
    assert spoiled.count("") >= 10
    assert set(spoiled) - {""} == set(EXPECTED)


@pytest.mark.parametrize("known", [True, False], ids=["with facts", "records alone"])
@pytest.mark.parametrize("path", [p for p in CURVES if p.stem.startswith("healthy")], ids=lambda p: p.stem)
def test_a_healthy_run_is_met_with_silence(path: Path, known: bool) -> None:
    head, records = read_curve(path)
    assert watch(records, facts_of(head, records) if known else None) == []


# Its first replies hardly depend on the question: shuffled they end at a lower loss than those of healthy-orders in their places.
MISSED = pytest.mark.xfail(
    strict=True, reason="replies that can't be guessed look like a hard task when they are shuffled"
)
SPOILED = [pytest.param(p, marks=MISSED if p.stem == "shuffled-orders" else (), id=p.stem)
           for p in CURVES if not p.stem.startswith("healthy")]  # fmt: skip


@pytest.mark.parametrize("path", SPOILED)
def test_a_spoiled_run_is_named(path: Path) -> None:
    head, records = read_curve(path)
    found = watch(records, facts_of(head, records))
    named, beside = EXPECTED[head["spoiled"]]
    assert set(kinds(found)) & named, found
    assert set(kinds(found)) <= named | beside, found
    if "step" in head:
        spike = next(f for f in found if f.kind == "spike")
        assert (spike.step, spike.rows) == (head["step"], (f"row-{head['step']}",))


# --- made curves


def curve(losses: Iterable[float], *, norm: float = 1.0, rate: float = 5e-4) -> Iterator[dict[str, Any]]:
    for step, loss in enumerate(losses, 1):
        yield {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate}


def decay(n: int, start: float, end: float, pace: float, noise: float, seed: int, tail: float = 0.0) -> list[float]:
    """An exponential decay with noise that is relative to the level and of a longer upper tail."""
    rng = random.Random(seed)
    made = []
    for i in range(n):
        level = end + (start - end) * math.exp(-i / (pace * n))
        made.append(max(level * (1 + noise * rng.gauss(0, 1)) + tail * level * rng.expovariate(3.0), 1e-3))
    return made


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    n=st.integers(20, 300), start=st.floats(0.8, 10), share=st.floats(0.05, 0.9), pace=st.floats(0.2, 0.6),
    noise=st.floats(0.0, 0.2), tail=st.floats(0.0, 1.0), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_noisy_decays_are_met_with_silence(
    n: int, start: float, share: float, pace: float, noise: float, tail: float, seed: int
) -> None:
    assert watch(curve(decay(n, start, share * start, pace, noise, seed, tail * noise))) == []


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(40, 180), st.floats(0.02, 0.2))
def test_a_spike_is_found_at_its_step_with_its_rows(seed: int, at: int, noise: float) -> None:
    losses = decay(200, 4.0, 1.0, 0.2, noise, seed)
    losses[at - 1] = 4 * losses[at - 1] + 4
    found = watch(curve(losses))
    assert [(f.kind, f.step, f.rows) for f in found] == [("spike", at, (f"row-{at}",))]
    assert f"look at these rows: row-{at}" == found[0].remedies[0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["loss", "grad_norm"])
def test_what_is_no_number_is_divergence(value: float | None, key: str) -> None:
    records = list(curve([2.0, 1.9, 1.8]))
    records[1][key] = value
    found = watch(records)
    assert [(f.kind, f.step) for f in found] == [("divergence", 2)]


def test_a_lasting_rise_is_divergence_and_is_said_once() -> None:
    losses = decay(120, 4.0, 1.0, 0.2, 0.1, 0) + [1.0 + 0.06 * i for i in range(100)]
    assert kinds(watch(curve(losses))) == ["divergence"]


def test_a_fall_that_ended_long_ago_is_a_plateau() -> None:
    losses = decay(80, 4.0, 2.0, 0.2, 0.04, 0) + decay(320, 2.0, 2.0, 1.0, 0.04, 1)
    found = watch(curve(losses))
    assert kinds(found) == ["plateau"]
    assert "2" in found[0].sentence and "not fallen" in found[0].sentence


def test_a_loss_that_never_moves_or_has_no_gradient_is_dead() -> None:
    assert kinds(watch(curve([2.5] * 60))) == ["dead_loss"]
    still = [2.0 + 0.3 * random.Random(i).gauss(0, 1) for i in range(60)]
    assert kinds(watch([*curve(still[:30]), *({**r, "step": r["step"] + 30} for r in curve(still[30:], norm=0.0))])) == ["dead_loss"]  # fmt: skip
    assert kinds(watch(curve([3 + 0.05 * random.Random(i).gauss(0, 1) for i in range(200)]), MonitorFacts(200))) == [
        "dead_loss"
    ]


def test_a_low_rate_is_told_from_a_dead_loss_by_the_usual_rate() -> None:
    still = [3 + 0.05 * random.Random(i).gauss(0, 1) for i in range(200)]
    found = watch(curve(still, rate=1e-7), MonitorFacts(200, learning_rate=1e-7, usual_rate=5e-4))
    assert kinds(found) == ["learning_rate_too_low"]
    assert found[0].remedies[0] == "train.learning_rate=0.0005"


def test_a_gradient_explosion_is_an_event_of_a_batch() -> None:
    records = list(curve(decay(60, 3.0, 1.0, 0.3, 0.1, 0)))
    records[40]["grad_norm"] = 90.0
    found = watch(records)
    assert [(f.kind, f.step, f.rows) for f in found] == [("gradient_explosion", 41, ("row-41",))]


def evaluated(losses: list[float], validations: dict[int, float]) -> Iterator[dict[str, Any]]:
    for record in curve(losses):
        if record["step"] == 1 and 0 in validations:
            yield {"step": 0, "val_loss": validations[0]}
        yield record
        if record["step"] in validations:
            yield {"step": record["step"], "val_loss": validations[record["step"]]}


def test_validation_that_rises_twice_while_training_falls_is_overfitting() -> None:
    losses = decay(100, 3.0, 0.5, 0.4, 0.1, 0)
    worse = {0: 3.0, 20: 1.5, 40: 1.3, 60: 1.36, 80: 1.45}
    assert [(f.kind, f.step) for f in watch(evaluated(losses, worse))] == [("overfitting", 80)]
    once = {0: 3.0, 20: 1.5, 40: 1.3, 60: 1.34, 80: 1.28, 100: 1.3}
    assert watch(evaluated(losses, once)) == []
    flat = {0: 3.0, 20: 1.5, 40: 1.3, 60: 1.301, 80: 1.302, 100: 1.301}
    assert watch(evaluated(losses, flat)) == [], "within a percent is no rise"


def test_a_validation_loss_worse_than_the_base_models_is_a_rate_too_high() -> None:
    losses = [2.0, 2.3, 2.1, 2.4, 2.3, 2.2, 2.5, 2.4, 2.3, 2.6, 2.3, 2.4]
    assert kinds(watch(evaluated(losses, {0: 2.0, 12: 2.4}))) == ["learning_rate_too_high"]


def test_labels_that_the_questions_do_not_tell_are_a_plateau_above_guessing() -> None:
    losses = decay(100, 6.0, 1.0, 0.15, 0.1, 0)
    level = {0: 6.0, 25: 1.3, 50: 1.1, 75: 1.05, 100: 1.04}
    facts = MonitorFacts(100, guess_loss=1.0)
    found = watch(evaluated(losses, level), facts)
    assert [(f.kind, f.step) for f in found] == [("plateau", 75)] and "guessing" in found[0].sentence
    assert watch(evaluated(losses, {**level, 75: 0.6, 100: 0.5}), facts) == []


def test_rows_known_by_heart_are_told_from_rows_learned() -> None:
    records = [{**r, "epoch": r["step"] / 5} for r in evaluated(decay(100, 4.0, 0.001, 0.1, 0.1, 0), {0: 4.0, 50: 2.5, 100: 2.6})]  # fmt: skip
    assert "memorising" in kinds(watch(records, MonitorFacts(100, rows=40)))
    learned = [{**r, "epoch": r["step"] / 5} for r in evaluated(decay(100, 4.0, 0.001, 0.1, 0.1, 0), {0: 4.0, 50: 0.03, 100: 0.02})]  # fmt: skip
    assert watch(learned, MonitorFacts(100, rows=40)) == []


# --- the rest


def test_monitors_that_were_shown_the_past_do_not_repeat_themselves() -> None:
    losses = decay(120, 4.0, 1.0, 0.2, 0.1, 0) + [1.0 + 0.06 * i for i in range(100)]
    records, monitors = list(curve(losses)), Monitors()
    assert [f.kind for r in records[:200] for f in monitors.feed(r)] == ["divergence"]
    assert [f for r in records[200:] for f in monitors.feed(r)] == []


def test_the_level_of_guessing_is_about_the_entropy_of_the_answers() -> None:
    even = [(i % 4, 9) for i in range(400)]  # four answers of two tokens
    assert guess_loss(even) == pytest.approx(math.log(4) / 2, rel=0.04)
    assert guess_loss([(1,)] * 400) is None, "nothing to guess"
    assert guess_loss(even[:20]) is None, "too few rows"


def test_answers_that_recur_in_parts_only_can_be_guessed_and_free_text_can_not() -> None:
    rng = random.Random(0)
    parts = [(10 * k + 1, 10 * k + 2, 10 * k + 3) for k in range(16)]
    mixed = [sum(rng.sample(parts, 3), ()) for _ in range(600)]  # 3,360 answers of three parts of three tokens
    assert guess_loss(mixed) == pytest.approx((math.log(16) + math.log(15) + math.log(14)) / 9, rel=0.25)
    free = [tuple(rng.choices(range(5000), k=20)) for _ in range(200)]
    assert (guess_loss(free) or 0) > 7


def test_the_spread_of_normal_noise_is_its_standard_deviation() -> None:
    rng = random.Random(0)
    assert spread([rng.gauss(5, 2) for _ in range(4000)]) == pytest.approx(2, rel=0.1)
    assert spread([5.0] * 30) == pytest.approx(0.1)


ORDER = ("these rows", "data set", "preflight", "add rows", "question", "learning_rate", "max_grad_norm", "rows_per_step", "epochs", "dropout")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_remedies_in_order(kind: str) -> None:
    found = remedies(kind, MonitorFacts(learning_rate=5e-4, usual_rate=5e-4), ["a", "b"])
    assert found
    places = [min(i for i, word in enumerate(ORDER) if word in text) for text in found]
    assert places == sorted(places), found


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), max_size=60))
def test_nothing_that_a_curve_can_hold_breaks_the_monitors(losses: list[float | None]) -> None:
    watch([{"step": 0, "val_loss": None}, *({"step": i, "loss": v, "grad_norm": v, "epoch": i / 3} for i, v in enumerate(losses, 1))])  # fmt: skip


# --- in the loop


def spoiled_run(folder: Path, out: Path, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A tiny run whose batch of step 20 says nonsense."""
    import torch

    from tuneloop.core.files import read_jsonl
    from tuneloop.models.chat.template import Rendered
    from tuneloop.models.load import load_model
    from tuneloop.training.batches import plan_steps
    from tuneloop.training.config import TrainConfig
    from tuneloop.training.loop import TrainingJob, train

    model = load_model(str(folder), dtype="float32")
    torch.manual_seed(0)
    config = TrainConfig(rank=4, learning_rate=2e-3, epochs=1, rows_per_step=4, checkpoint_steps=5, **{"evaluations": 2, **settings})  # fmt: skip
    rows = [Rendered([BEGIN_OF_TEXT, 10 + i % 7, 20, 30, 40, 50], [0, 0, 1, 1, 1, 1]) for i in range(160)]
    for i in (i for micro in plan_steps(rows, config, 0)[19].micro_batches for i in micro):
        rows[i] = Rendered([BEGIN_OF_TEXT, 900 + i, 1100 + i, 1300 + i, 1500 + i, 1700 + i], [0, 0, 1, 1, 1, 1])
    ids = [f"row-{i}" for i in range(160)]
    result = train(model, rows, rows[:8], config, out, job=TrainingJob(ids=ids, data_id="d"))
    return result, read_jsonl(out / "metrics.jsonl")


def test_the_loop_names_the_rows_of_a_poisoned_batch(tiny_llama: Path, tmp_path: Path) -> None:
    result, records = spoiled_run(tiny_llama, tmp_path)
    spikes = [f for f in result.findings if f["finding"] == "spike"]
    assert [(f["step"], len(f["rows"])) for f in spikes] == [(20, 4)]
    batch = next(r["rows"] for r in records if r["step"] == 20 and "loss" in r)
    assert spikes[0]["rows"] == [f"row-{i}" for i in batch]
    assert spikes[0] in records and result.stopped == "finished"


def test_a_rollback_goes_on_before_the_spike_without_its_batch_at_half_the_rate(
    tiny_llama: Path, tmp_path: Path
) -> None:
    result, records = spoiled_run(tiny_llama, tmp_path, on_spike="rollback", schedule="constant")
    events = [r for r in records if r.get("event") == "rollback"]
    assert [r["step"] for r in events] == [15] and "step 20" in events[0]["message"]
    after = [r for r in records[records.index(events[0]) :] if "loss" in r]
    assert [r["step"] for r in after] == [16, 17, 18, 19, *range(21, 41)]
    assert {r["learning_rate"] for r in after} == {1e-3}
    assert max(r["loss"] for r in after) < 5 and result.steps == 40


def test_a_stop_keeps_what_was_best_or_says_that_nothing_is_worth_keeping(tiny_llama: Path, tmp_path: Path) -> None:
    from tuneloop.core.errors import UserError

    with pytest.raises(UserError, match="jumps"):
        spoiled_run(tiny_llama, tmp_path / "early", on_spike="stop", evaluations=1)
    result, _ = spoiled_run(
        tiny_llama, tmp_path / "late", on_spike="stop", patience=99
    )  # its first evaluation is at step 20
    assert (result.stopped, result.steps) == ("spike", 20)
