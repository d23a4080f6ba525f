"""Each family of the table computes what Transformers' own class does, however its rows are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from by_day import by_day
from families import MODELS, SIZES, folder_of, ours_of
from tiny import BEGIN_OF_TEXT, END_OF_TURN, VOCABULARY

from tuneloop.inference.labels import label_trie
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.scoring import choose
from tuneloop.models.adapters.assignment import applied
from tuneloop.models.adapters.lora import (
    LoraShape,
    adapter_state,
    add_lora,
    lora_layers,
    remove_lora,
    save_adapter,
    target_names,
)
from tuneloop.models.adapters.prefix import add_prefix
from tuneloop.models.adapters.shared import add_adapter
from tuneloop.models.load import Model, load_model
from tuneloop.models.nn.families import FAMILIES
from tuneloop.models.nn.llama import Llama, LlamaConfig
from tuneloop.models.nn.quantised import quantisable, quantise, through_four_bits
from tuneloop.models.nn.shape import ModelShape
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.job import make_job

every = pytest.mark.parametrize("name", MODELS)


def pair(name: str, folder: Path) -> tuple[Llama, Any]:
    """The same random model, ours and Transformers', read from the same files."""
    theirs = folder_of(name, folder)
    return ours_of(folder), theirs


def ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 211, (rows, length), generator=torch.Generator().manual_seed(seed))


@every
@pytest.mark.parametrize("length", [20, 90])
@torch.no_grad()
def test_logits_equal_those_of_transformers(name: str, length: int, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    x = ids(3, length)
    torch.testing.assert_close(ours.logits(ours.hidden(x)), theirs(x).logits, atol=2e-4, rtol=2e-4)


@every
def test_every_gradient_equals_that_of_transformers(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    x = ids(2, 40, seed=2)
    for net, logits in ((ours, ours.logits(ours.hidden(x))), (theirs, theirs(x).logits)):
        net.zero_grad()
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    gradients = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[key].grad, parameter.grad, atol=1e-4, rtol=1e-3)


@every
@torch.no_grad()
def test_reading_step_by_step_through_the_cache_equals_reading_at_once(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    x = ids(2, 60, seed=3)
    whole = theirs.model(x).last_hidden_state
    cache = ours.new_cache()
    parts = [
        ours.hidden(x[:, a:b], torch.arange(a, b)[None], cache=cache)
        for a, b in ((0, 13), (13, 50), (50, 51), (51, 60))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-4, rtol=2e-4)


@every
@torch.no_grad()
def test_left_padded_rows_and_branches_behind_a_shared_beginning_equal_rows_alone(name: str, tmp_path: Path) -> None:
    ours, _ = pair(name, tmp_path)
    before, branches = ids(1, 40, seed=4), [ids(1, n, seed=n) for n in (5, 9)]
    # Both branches in one row behind the beginning: each sees the beginning and itself alone.
    cache = ours.new_cache()
    ours.hidden(before, cache=cache)
    joined = torch.cat(branches, 1)
    own = torch.cat([torch.full((b.shape[1],), i) for i, b in enumerate(branches)])
    causal = torch.ones(14, 14, dtype=torch.bool).tril() & (own[:, None] == own)
    mask = torch.cat((torch.ones(14, 40, dtype=torch.bool), causal), 1)[None, None]
    positions = 40 + torch.cat([torch.arange(b.shape[1]) for b in branches])[None]
    states = ours.hidden(joined, positions, mask, cache)
    for branch, some in zip(branches, (slice(0, 5), slice(5, 14)), strict=True):
        alone = ours.hidden(torch.cat((before, branch), 1))[:, 40:]
        torch.testing.assert_close(states[:, some], alone, atol=2e-4, rtol=2e-4)
    # A shorter row next to a longer one, padded on its left.
    lengths = (40, 31)
    real = torch.arange(40) >= 40 - torch.tensor(lengths)[:, None]
    rows = torch.cat((before, torch.nn.functional.pad(before[:, :31], (9, 0))))
    places = (torch.arange(40) - (40 - torch.tensor(lengths))[:, None]).clamp(min=0)
    looks = (torch.ones(40, 40, dtype=torch.bool).tril() & real[:, None])[:, None]
    states = ours.hidden(rows, places, looks, real_BT=real)
    torch.testing.assert_close(states[1, 9:], ours.hidden(before[:, :31])[0], atol=2e-4, rtol=2e-4)


@every
def test_packed_rows_equal_rows_alone_gradient_included(name: str, tmp_path: Path) -> None:
    ours, _ = pair(name, tmp_path)
    prefix, lengths = ids(1, 6, seed=5)[0], [9, 4, 12]
    rows = [ids(1, n, seed=n)[0] for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    picks = torch.zeros(3, 12, dtype=torch.bool)
    picks[:, :4] = True
    gradients = []
    for states in (
        ours.hidden_at(picks, prefix, padded, lengths),
        torch.cat([ours.hidden(torch.cat((prefix, row))[None])[0, 6:10] for row in rows]),
    ):
        ours.zero_grad()
        states.square().sum().backward()
        gradients.append((states.detach(), [p.grad.clone() for p in ours.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        flat = torch.cat([*rows, ids(1, 40, seed=7)[0]])
        states = ours.hidden_of_rows(None, flat, [*lengths, 40])
        torch.testing.assert_close(states[-40:], ours.hidden(flat[None, -40:])[0], atol=2e-4, rtol=2e-4)


@every
@torch.no_grad()
def test_in_bf16_it_is_as_near_to_fp32_as_transformers(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, tmp_path)
    x = ids(2, 30, seed=6)
    exact = theirs(x).logits
    off = (ours.bfloat16().logits(ours.hidden(x)).float() - exact).abs().mean()
    assert off <= 1.3 * (theirs.bfloat16()(x).logits.float() - exact).abs().mean()


@pytest.fixture
def with_tokenizer(tiny_llama: Path, tmp_path: Path) -> Any:
    """Makes a family's folder with the tiny Llama 3's tokenizer, and loads it as any other: ours and Transformers'."""

    def make(name: str) -> tuple[Model, Any]:
        ends = {"bos_token_id": BEGIN_OF_TEXT, "eos_token_id": END_OF_TURN, "pad_token_id": END_OF_TURN}
        theirs = folder_of(name, tmp_path, vocab_size=VOCABULARY, **ends)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / file).write_bytes((tiny_llama / file).read_bytes())
        model = load_model(str(tmp_path), dtype="float32")
        assert model.is_own
        return model, theirs

    return make


def tune(model: Model, seed: int) -> LoraShape:
    """Put a LoRA of random weights into all of a model's layers."""
    shape = LoraShape(4, 8.0, 0.0, target_names(model.net, "all-linear"))
    add_lora(model.net, shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)
    return shape


@every
def test_plain_peft_loads_an_adapter_with_the_same_logits_and_gradients(
    name: str, with_tokenizer: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    model, theirs = with_tokenizer(name)
    shape = tune(model, seed=3)
    save_adapter(tmp_path / "adapter", adapter_state(model.net), shape, str(tmp_path), model.fingerprint)
    peft: Any = PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
    x = ids(2, 40, seed=8)
    net: Any = model.net
    ours, wanted = net.logits(model.hidden(x)), peft(x).logits
    torch.testing.assert_close(ours, wanted, atol=5e-4, rtol=5e-4)
    for logits in (ours, wanted):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    expected = {key: p.grad for key, p in peft.named_parameters() if p.grad is not None}
    for path, layer in lora_layers(net).items():
        for part, parameter in (("A", layer.lora_A), ("B", layer.lora_B)):
            key = f"base_model.model.{path}.lora_{part}.default.weight"
            torch.testing.assert_close(parameter.grad, expected.pop(key), atol=1e-4, rtol=1e-2)
    assert not expected


@every
def test_in_four_bits_it_computes_with_the_rounded_weights(name: str, with_tokenizer: Any) -> None:
    model, theirs = with_tokenizer(name)
    with torch.no_grad():
        for module in quantisable(theirs).values():
            module.weight.copy_(through_four_bits(module.weight.detach()))
    quantise(model.net)
    tune(model, seed=1)
    x = ids(2, 40, seed=9)
    model.hidden(x).square().mean().backward()
    assert all(torch.isfinite(layer.lora_A.grad).all() for layer in lora_layers(model.net).values())  # type: ignore[arg-type]
    remove_lora(model.net)
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(x), theirs.model(x).last_hidden_state, atol=2e-3, rtol=2e-3)


@every
@torch.no_grad()
def test_a_prefix_starts_as_the_text_in_front(name: str, with_tokenizer: Any) -> None:
    model, theirs = with_tokenizer(name)
    before, x = ids(1, 7, seed=10), ids(3, 40, seed=11)
    expected = theirs.model(torch.cat((before.expand(3, -1), x), 1)).last_hidden_state[:, 7:]
    add_prefix(model.net, before[0].tolist())
    torch.testing.assert_close(model.hidden(x), expected, atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("name", by_day(MODELS, 3))
@torch.no_grad()
def test_answers_and_choices_of_several_adapters_are_those_of_peft(
    name: str, with_tokenizer: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    model, theirs = with_tokenizer(name)
    prompts = [ids(1, n, seed=n)[0].tolist() for n in (18, 30, 45)]
    labels = [[17, 18, END_OF_TURN], [17, 19, END_OF_TURN], [33, END_OF_TURN]]
    for seed in (1, 2):
        shape = tune(model, seed)
        save_adapter(tmp_path / str(seed), adapter_state(model.net), shape, str(tmp_path), model.fingerprint)
        remove_lora(model.net)
    hashes = [add_adapter(model, tmp_path / str(seed)) for seed in (1, 2)]
    peft: Any = PeftModel.from_pretrained(theirs, tmp_path / "1", adapter_name="0")
    peft.load_adapter(tmp_path / "2", adapter_name="1")
    for number, adapter in enumerate(hashes):
        peft.set_adapter(str(number))
        with applied(adapter):
            written = generate(model, prompts, max_new_tokens=20)
            scored = choose(model, prompts, label_trie(["a", "b", "c"], labels))
        for prompt, answer, choice in zip(prompts, written, scored, strict=True):
            x = torch.tensor([prompt])
            theirs_ids = peft.generate(
                input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=20, do_sample=False
            )
            new = theirs_ids[0, len(prompt) :].tolist()
            assert list(answer.token_ids) == new
            for label, tokens in zip("abc", labels, strict=True):
                logits = peft(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                mean = logits.gather(1, torch.tensor(tokens)[:, None]).mean().item()
                assert choice.label_scores is not None
                assert choice.label_scores[label] == pytest.approx(mean, abs=2e-3)


@every
def test_the_planner_counts_every_parameter(name: str, tmp_path: Path) -> None:
    theirs = folder_of(name, tmp_path)
    shape = ModelShape.from_config(json.loads((tmp_path / "config.json").read_text()))
    assert shape.parameters == sum(p.numel() for p in theirs.parameters())
    net = ours_of(tmp_path)
    adapter = add_lora(net, LoraShape(rank=4, alpha=8, dropout=0.0, targets=target_names(net, "all-linear")), 0)
    planned = make_job(model=name, shape=shape, gpu=find_gpu("cpu"), method="lora", rank=4).trainable
    assert planned == sum(p.numel() for p in adapter)


def test_every_family_of_the_table_is_compared() -> None:
    kinds = {config(**{**SIZES, **changes}).model_type for _, config, changes in MODELS.values()}
    assert kinds == set(FAMILIES)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}),
        ("phi3", {"partial_rotary_factor": 0.75}),
        ("gemma3_text", {"final_logit_softcapping": 30.0}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}),
        ("qwen2", {"hidden_act": "gelu"}),
        ("smollm3", {"use_sliding_window": True}),
        ("qwen3_moe", {}),
    ],
)
def test_what_the_table_does_not_say_is_left_to_transformers(kind: str, changes: dict[str, Any]) -> None:
    assert not LlamaConfig.supports({**SIZES, "model_type": kind, **changes})
