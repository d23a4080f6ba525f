"""A machine that holds the model at the smallest price, and the engine's options for it."""

from __future__ import annotations

import pytest

from tuneloop.core.errors import UserError
from tuneloop.deploy.deployment import (
    Card,
    Machine,
    Replicas,
    ServingJob,
    Size,
    choose_machine,
    engine_arguments,
    job_of,
    lora_rank,
    service_name,
    vllm_command,
)

SMALL, LARGE = Card("l4", "L4", 22.5, 0.9), Card("h100-sxm", "H100", 79.0, 3.0)
LLAMA_8B, LLAMA_70B = Size(15.0, 131072, 4096), Size(131.0, 327680, 4096)


def test_the_cheapest_card_that_holds_weights_and_answers_is_taken() -> None:
    assert LLAMA_8B.need_gib == pytest.approx(15.0 + 4 * 4096 * 131072 / 2**30 + 1.5)
    assert choose_machine(LLAMA_8B, [LARGE, SMALL]) == Machine(SMALL, 1)
    assert choose_machine(LLAMA_70B, [SMALL, LARGE]) == Machine(LARGE, 2)
    dearer = Card("a100-80gb", "A100", 79.0, 1.2, counts=(8,))
    assert choose_machine(LLAMA_70B, [dearer, LARGE]) == Machine(LARGE, 2)  # eight of them cost 9.6
    unknown = Card("b200", "B200", 178.0)
    assert choose_machine(LLAMA_70B, [unknown, LARGE]) == Machine(LARGE, 2)  # a known price before an unknown one
    assert choose_machine(LLAMA_70B, [unknown]) == Machine(unknown, 1)


def test_a_model_that_is_too_large_for_all_cards_is_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match="No GPU there is large enough: 805") as caught:
        choose_machine(Size(800.0, 1e5, 10000), [SMALL, LARGE])
    assert "--quant" in caught.value.next_step


def test_an_adapter_is_asked_for_by_its_own_name_and_the_base_by_another() -> None:
    job = ServingJob(
        "tickets", "id", "adapter", "org/base", "org/adapter", LLAMA_8B, rank=20, machine=Machine(LARGE, 2)
    )
    assert engine_arguments(job) == {
        "served-model-name": "base", "max-model-len": 4096, "generation-config": "vllm", "tensor-parallel-size": 2,
        "enable-lora": True, "max-lora-rank": 32, "lora-modules": "tickets=org/adapter", "tokenizer": "org/adapter",
        "max-loras": 2,
    }  # fmt: skip
    assert vllm_command(job)[:3] == ["vllm", "serve", "org/base"] and "--enable-lora" in vllm_command(job)


def test_a_card_without_bf16_computes_in_half_precision() -> None:
    t4 = Card("t4", "T4", 14.7, 0.5, bf16=False)
    job = ServingJob("tickets", "id", "merged", "org/base", "org/merged", Size(1.0, 1e4, 512), machine=Machine(t4, 1))
    assert engine_arguments(job)["dtype"] == "half"


@pytest.mark.parametrize(("rank", "size"), [(1, 8), (8, 8), (9, 16), (320, 320), (400, 512)])
def test_ranks_are_those_that_the_engine_allocates(rank: int, size: int) -> None:
    assert lora_rank(rank) == size


def test_a_rank_beyond_the_engine_s_is_refused() -> None:
    with pytest.raises(UserError, match="up to rank 512") as caught:
        lora_rank(600)
    assert "merged" in caught.value.next_step


def test_the_month_is_counted_for_the_least_and_the_most_replicas() -> None:
    job = ServingJob("a", "id", "merged", "b", "o/r", LLAMA_8B, machine=Machine(SMALL, 2), traffic=Replicas(1, 3))
    assert job.usd_a_month() == pytest.approx((2 * 0.9 * 730, 3 * 2 * 0.9 * 730))
    assert (
        ServingJob("a", "id", "merged", "b", "o/r", LLAMA_8B, machine=Machine(Card("x", "X", 80.0), 1)).usd_a_month()
        is None
    )


@pytest.mark.parametrize(
    ("text", "name"), [("Ticket Card_v2!", "ticket-card-v2"), ("9 lives", "lives"), ("x" * 60, "x" * 40)]
)
def test_a_name_is_one_that_every_host_takes(text: str, name: str) -> None:
    assert service_name(text) == name


def test_a_name_without_letters_is_refused() -> None:
    with pytest.raises(UserError, match="Not a name"):
        service_name("123 !")


def test_the_job_is_found_in_ids_of_artifacts() -> None:
    ids = ("ticket-card-aaeae754", "ticket-card-merged-0123456789ab", "ticket-card-gguf-q4_k_m-0123456789ab",
           "ticket-card-gguf-lora-0123456789ab", "ticket-card", "demo")  # fmt: skip
    assert [job_of(id_) for id_ in ids] == ["ticket-card"] * 4 + ["", ""]
