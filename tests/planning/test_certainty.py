"""How sure a plan is: what is known of its kind of setup, and whether its interval reaches over the card."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from published_runs import read_points

from tuneloop.core.foreign import packaged_yaml
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.certainty import KNOWN, certainty_of, kind_of
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.options import plan_machines
from tuneloop.report.plan_terminal import print_plan

POINTS = Path(__file__).parent / "points"


def job(model: str = "llama-3.1-8b", gpu: str = "a100-80gb", **settings: Any) -> TrainingSetup:
    return make_job(model=model, shape=find_model(model)[1], gpu=find_gpu(gpu), **settings)


def test_what_is_said_to_be_published_is_what_the_points_hold() -> None:
    kinds: dict[str, Counter[str]] = {}
    for point in (point for path in sorted(POINTS.glob("*.yaml")) for point in read_points(path)):
        if point.gib or point.reserve_error is not None or point.card_gib:
            kinds.setdefault(kind_of(point.job), Counter())[point.source] += 1
    published = {kind: {"sources": len(found), "runs": found.total()} for kind, found in kinds.items()}
    assert packaged_yaml(KNOWN)["published"] == published


@pytest.mark.parametrize(
    ("settings", "here", "basis"),
    [
        ({"method": "lora"}, False, "measured by others"),
        ({"method": "full", "gpus": 4, "sharding": "fsdp"}, False, "measured by others"),
        ({"method": "lora"}, True, "measured here"),
        ({"model": "mixtral-8x7b", "method": "lora", "gpus": 8, "sharding": "fsdp"}, False, "computed"),
        ({"gpu": "rtx4090", "method": "full", "gpus": 2, "sharding": "zero3"}, False, "computed"),
    ],
)
def test_a_plan_says_what_is_known_of_its_kind(settings: dict[str, Any], here: bool, basis: str) -> None:
    sure = certainty_of(job(**settings), 50.0, 79.0, 1000.0, here=here)
    assert sure.basis == basis and (sure.runs > 0) is (basis == "measured by others" or here)


def test_what_is_sharded_is_less_sure_and_may_not_fit_where_its_interval_reaches_over_the_card() -> None:
    whole, sharded = (
        certainty_of(job(method="lora", **settings), 60.0, 79.0, 1000.0, here=False)
        for settings in ({"gpus": 8, "sharding": "ddp"}, {"gpus": 8, "sharding": "fsdp"})
    )
    for sure in (whole, sharded):
        assert sure.required_low_gib < 60 < sure.required_high_gib
        assert sure.tokens_per_second_low is not None and sure.tokens_per_second_high is not None
        assert sure.tokens_per_second_low < 1000 < sure.tokens_per_second_high
    assert sharded.required_high_gib > 79 > whole.required_high_gib
    assert sharded.may_not_fit and not whole.may_not_fit
    assert not certainty_of(job(method="lora"), 90.0, 79.0, 1000.0, here=False).may_not_fit, "it does not fit"


def test_a_plan_that_may_not_fit_says_so_in_its_record_on_the_terminal_and_in_its_advice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sharded = {"model": "llama-3.1-70b", "method": "qlora", "gpus": 2, "sharding": "fsdp", "grad_ckpt": True}
    plan = plan_machines({**sharded, "gpu": "a100-40gb"})
    assert plan["fits"] and plan["certainty"]["may_not_fit"]
    assert plan["certainty"]["required_high_gib"] > plan["memory"]["capacity_gib"]
    print_plan(plan)
    out = capsys.readouterr().out
    assert "2 x a100-40gb: may not fit." in out and "How sure: measured by others (" in out
    assert "It may not fit" in plan["recommendation"]
    roomy = plan_machines({**sharded, "gpu": "h100-sxm"})
    assert roomy["fits"] and not roomy["certainty"]["may_not_fit"] and "may not" not in roomy["recommendation"]
