"""`tuneloop plan` and `advise` with whatever people type: an answer whose figures can be, or an error of at most three lines."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.cli.main import main
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.memory import memory_of
from tuneloop.planning.options import plan_machines
from tuneloop.planning.recommend import changes


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TUNELOOP_LEDGER", str(tmp_path / "ledger.jsonl"))


ODD = st.one_of(
    st.sampled_from(["0", "-1", "nan", "inf", "1e400", "-0.0", "", "many", "10**9", "0x10"]),
    st.integers(-(10**6), 10**18).map(str),
    st.floats(allow_nan=True).map(str),
)  # fmt: skip


def mostly(*good: str) -> st.SearchStrategy[str]:
    """One of the good values nine times in ten, else anything."""
    return st.integers(0, 9).flatmap(lambda n: ODD if n == 0 else st.sampled_from(good))


NUMBERS = mostly("1", "2", "4", "8", "16", "64", "512")


def words(*good: str) -> st.SearchStrategy[str]:
    """Likewise for words."""
    odd = st.sampled_from(["", "none", "nf4", "h1000", "qlorra", "ü", "../..", "{}"])
    return st.integers(0, 9).flatmap(lambda n: odd if n == 0 else st.sampled_from(good))


CHOICES = {
    "--model": words("llama-3.1-8b", "llama-3.1-405b", "smollm2-135m", "llama-2-7b", "llama-9"),
    "--gpu": words("h100-sxm", "t4", "RTX 4090", "mi300x", "cpu"),
    "--method": words("full", "lora", "qlora", "prefix"),
    "--sharding": words("none", "ddp", "fsdp", "zero2", "zero3"),
    "--attention": words("flash", "sdpa", "eager"),
    "--loss-kernel": words("eager", "compiled", "triton", "chunked", "fused"),
    "--dtype": words("bf16", "fp16", "fp32", "mixed"),
    "--optimizer": words("adamw", "adamw-bf16", "adamw-8bit", "paged-adamw-8bit", "sgd"),
    "--targets": words("all-linear", "attention", "q,v", "q,,v", ","),
    "--quant": words("nf4", "nf4-dq", "int8", "none"),
    "--tier": words("on-demand", "spot", "community", "reserved"),
}
COUNTED = ("--gpus", "--seq-len", "--micro-batch", "--grad-accum", "--rank", "--prefix-tokens", "--tokens", "--epochs",
           "--usd-per-gpu-hour", "--gpu-memory", "--gpu-tflops", "--gpu-bandwidth", "--gpu-link", "--interruptions-per-hour", "--checkpoint-minutes",
           "--runs", "--setup-hours", "--rows-to-label", "--usd-per-engineer-hour")  # fmt: skip
SWITCHES = ("--offload", "--offload-activations", "--grad-ckpt", "--optimizer-in-backward", "--head-fp32", "--packing")


@st.composite
def plan_arguments(draw: st.DrawFn) -> list[str]:
    found = ["--model", draw(CHOICES["--model"])]
    for flag in draw(st.lists(st.sampled_from([f for f in CHOICES if f != "--model"]), max_size=4, unique=True)):
        found += [flag, draw(CHOICES[flag])]
    for flag in draw(st.lists(st.sampled_from(COUNTED), max_size=3, unique=True)):
        found += [f"{flag}={draw(NUMBERS)}"]
    return found + draw(st.lists(st.sampled_from(SWITCHES), max_size=3, unique=True))


COUNT, SHARE, MONEY = ("1", "2", "50", "1000", "300000"), ("0", "0.5", "0.93", "1"), ("0", "0.02", "3", "80", "1e5")
ASKED = {
    "--rows": COUNT, "--labels": COUNT, "--tokens-per-row": COUNT, "--epochs": ("1", "3", "0.5"), "--queries-per-day": (*COUNT, "1e6"),
    "--baseline-prompt-tokens": COUNT, "--prompt-tokens": COUNT, "--answer-tokens": ("0", "1", "300"),
    "--usd-per-million-input": MONEY, "--baseline-usd-per-million-input": MONEY, "--target": SHARE, "--latency-ms": COUNT,
    "--budget": MONEY, "--gpus": ("1", "2", "8"), "--usd-per-gpu-hour": MONEY, "--months": ("1", "12"), "--retrain-months": ("0", "6"),
    "--engineer-hours": ("0", "16"), "--usd-per-engineer-hour": MONEY, "--rows-to-label": COUNT, "--zero-shot": SHARE,
    "--few-shot": SHARE, "--classifier": SHARE, "--test-rows": COUNT, "--serving": ("token", "batch", "real-time", "hybrid"),
}  # fmt: skip


@st.composite
def advise_arguments(draw: st.DrawFn) -> list[str]:
    flags = draw(st.lists(st.sampled_from(list(ASKED)), max_size=8, unique=True))
    found = [f"{flag}={draw(mostly(*ASKED[flag]))}" for flag in flags]
    for flag in draw(st.lists(st.sampled_from(["--model", "--gpu", "--tier"]), max_size=2, unique=True)):
        found += [flag, draw(CHOICES[flag])]
    return found


def figures(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for part in value.values():
            yield from figures(part)
    elif isinstance(value, list):
        for part in value:
            yield from figures(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def answer(arguments: list[str]) -> dict[str, Any] | None:
    """What `--json` prints, or None for a clear error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*arguments, "--json"])
    said = err.getvalue()
    assert "Traceback" not in said, said
    if status == 2:
        assert said.startswith("Error: "), said
        assert len(said.strip().splitlines()) <= 3, said
        assert set(json.loads(out.getvalue())) == {"error"}
        return None
    assert status in (0, 1)
    found: dict[str, Any] = json.loads(out.getvalue())
    assert all(math.isfinite(number) for number in figures(found))
    return found


@given(plan_arguments())
def test_a_plan_is_an_answer_or_a_clear_error(arguments: list[str]) -> None:
    found = answer(["plan", *arguments])
    if found is not None:
        assert found["memory"]["peak_gib"] > 0
        if found["fits"]:
            assert found["time"]["low"] <= found["time"]["hours"] <= found["time"]["high"]
        else:  # a job that can't run takes no time and costs nothing
            assert found["time"]["hours"] is None and found["cost"]["usd"] is None
        assert found["fits"] == (found["memory"]["required_gib"] <= found["memory"]["capacity_gib"] + 0.01)
        assert found["assumptions"]


@given(advise_arguments())
def test_advice_is_an_answer_or_a_clear_error(arguments: list[str]) -> None:
    found = answer(["advise", *arguments])
    if found is not None:
        assert found["answer"] in ("tune", "prompt", "dont")
        assert all(reason["says"] and reason["source"] for reason in found["reasons"])
        assert "{" not in found["headline"]
        known = {a.partition("=")[0] for a in arguments}
        if not {"--queries-per-day", "--baseline-prompt-tokens"} <= known:
            assert found["break_even"] is None and not found["alternatives"]


@given(st.data())
def test_every_change_that_is_named_makes_the_job_fit(data: st.DataObject) -> None:
    asked: dict[str, Any] = {
        "model": data.draw(st.sampled_from(["llama-3.2-1b", "llama-3.1-8b", "llama-3.3-70b", "llama-2-13b"])),
        "gpu": data.draw(st.sampled_from(["t4", "rtx4090", "a100-40gb", "h100-sxm"])), "gpus": 1,
        "method": data.draw(st.sampled_from(["full", "lora", "qlora", "prefix"])),
        "seq_len": data.draw(st.sampled_from([512, 4096])), "micro_batch": data.draw(st.sampled_from([1, 16])),
    }  # fmt: skip
    found = plan_machines(asked)
    for change in found["alternatives"]:
        flags = change["change"].split()
        given_: dict[str, Any] = dict(asked)
        while flags:
            name = flags.pop(0).removeprefix("--").replace("-", "_")
            value = flags.pop(0) if flags and not flags[0].startswith("--") else True
            given_[name] = int(value) if isinstance(value, str) and value.isdigit() else value
        assert plan_machines(given_)["fits"], change


def test_the_fewest_changes_are_named() -> None:
    asked = plan_machines({"model": "llama-3.1-8b", "method": "full", "gpu": "rtx4090"})
    assert asked["gpus"] == 1  # a GPU without a count is one
    assert not asked["fits"]
    words_ = [change["change"] for change in asked["alternatives"]]
    assert words_[:2] == ["--method lora --grad-ckpt", "--method qlora --grad-ckpt"]


@given(st.dictionaries(st.sampled_from(["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                        "num_key_value_heads", "head_dim", "tie_word_embeddings", "model_type", "text_config",
                                        "max_position_embeddings", "num_local_experts"]),
                       st.one_of(st.none(), st.booleans(), st.integers(-2, 10**9), st.floats(), st.text(max_size=3),
                                 st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1))))  # fmt: skip
def test_any_configuration_is_sized_or_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    good = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**good, **config}))
    answer(["plan", "--model", str(file), "--gpu", "h100-sxm", "--seq-len", "8", "--rank", "1"])


def test_alternatives_of_a_job_that_fits_nowhere_are_a_smaller_model() -> None:
    from tuneloop.planning.catalogue.gpus import find_gpu
    from tuneloop.planning.catalogue.shape import find_model

    job: TrainingSetup = make_job(model="llama-3.1-405b", shape=find_model("llama-3.1-405b")[1], gpu=find_gpu("t4"), method="full",
                        dtype="fp16", seq_len=4096)  # fmt: skip
    assert not memory_of(job).fits
    assert changes(job)
