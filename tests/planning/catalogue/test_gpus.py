"""GPUs are known by the names that people and drivers give them."""

from __future__ import annotations

import pytest

from tuneloop.core.errors import UserError
from tuneloop.planning.catalogue.gpus import all_gpus, find_gpu


@pytest.mark.parametrize(
    ("name", "key"), [("RTX 4090", "rtx4090"), ("A100 80GB", "a100-80gb"), ("NVIDIA H100", "h100-sxm")]
)
def test_people_s_names_of_gpus_are_known(name: str, key: str) -> None:
    assert find_gpu(name).key == key


def test_an_unknown_gpu_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        find_gpu("h100-sxn")
    assert "h100-sxm" in caught.value.next_step


def test_capacities_are_the_drivers_and_not_the_boxes() -> None:
    for gpu in all_gpus().values():
        box = next(
            int(word) for word in gpu.name.split() if word.isdigit() and int(word) > 10 and f"{word} GB" in gpu.name
        )
        assert 0.88 * box < gpu.gib < 1.005 * box
