"""A prefix is what a real instruction in front would be, until it learns; PEFT computes the same from its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import END_OF_TURN, VOCABULARY

from tuneloop.core.errors import UserError
from tuneloop.inference.labels import label_trie
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.scoring import choose
from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.adapters.prefix import add_prefix, load_prefix, prefix_of, remove_prefix, save_prefix
from tuneloop.models.load import Model, load_model

IDS = torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
BEFORE = torch.randint(0, VOCABULARY, (11,), generator=torch.Generator().manual_seed(1)).tolist()


def stir(model: Model) -> None:
    prefix = prefix_of(model.net)
    assert prefix is not None
    with torch.no_grad():
        prefix.embeddings += torch.randn(prefix.embeddings.shape, generator=torch.Generator().manual_seed(2)) * 0.3


def test_it_starts_as_the_text_in_front(tiny_model: Model) -> None:
    with torch.no_grad():
        joined = torch.cat((torch.tensor([BEFORE]).expand(3, -1), IDS), 1)
        expected = tiny_model.hidden(joined)[:, len(BEFORE) :]
        add_prefix(tiny_model.net, BEFORE)
        torch.testing.assert_close(tiny_model.hidden(IDS), expected, atol=1e-4, rtol=1e-4)
        wanted = torch.ones_like(IDS[:, 6:], dtype=torch.bool)
        after = tiny_model.hidden_at(wanted, IDS[0, :6], IDS[:, 6:], [IDS.shape[1] - 6] * 3)
        whole = tiny_model.hidden(torch.cat((IDS[:1, :6].expand(3, -1), IDS[:, 6:]), 1))[:, 6:]
        torch.testing.assert_close(after, whole.flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_rows_of_unlike_length_are_computed_in_groups_without_the_padding_of_the_longest(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [3, 4, 14]
    wanted = torch.arange(14) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        add_prefix(tiny_model.net, BEFORE)
        whole = tiny_model.hidden(torch.cat((IDS[:1, :6].expand(3, -1), IDS[:, 6:]), 1))[:, 6:]
        monkeypatch.setattr("tuneloop.models.load.PASS", 5)
        seen, hidden = [], tiny_model.net.hidden
        monkeypatch.setattr(
            tiny_model.net, "hidden", lambda ids, *more: seen.append(tuple(ids.shape)) or hidden(ids, *more)
        )
        found = tiny_model.hidden_at(wanted, IDS[0, :6], IDS[:, 6:], lengths)
    assert seen == [(2, 6 + 4), (1, 6 + 14)]
    torch.testing.assert_close(found, whole[wanted], atol=1e-4, rtol=1e-4)


def test_disabled_or_removed_it_leaves_the_base_model(tiny_model: Model) -> None:
    with torch.no_grad():
        before = tiny_model.hidden(IDS)
        add_prefix(tiny_model.net, BEFORE)
        stir(tiny_model)
        tuned = tiny_model.hidden(IDS)
        assert not torch.allclose(tuned, before, atol=1e-3)
        with applied(BASE):
            assert torch.equal(tiny_model.hidden(IDS), before)
        assert torch.equal(tiny_model.hidden(IDS), tuned)
        remove_prefix(tiny_model.net)
        assert torch.equal(tiny_model.hidden(IDS), before)
    with applied(BASE):
        pass


def test_plain_peft_loads_it_with_the_same_logits(tiny_llama: Path, tiny_model: Model, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    add_prefix(tiny_model.net, BEFORE)
    stir(tiny_model)
    save_prefix(tmp_path, tiny_model.net, str(tiny_llama), tiny_model.fingerprint)
    base = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        ours = tiny_model.net.logits(tiny_model.hidden(IDS))  # type: ignore[operator]
        torch.testing.assert_close(ours, theirs(IDS).logits, atol=1e-3, rtol=1e-3)
        fresh = load_model(str(tiny_llama), dtype="float32")
        load_prefix(fresh.net, tmp_path, fresh.fingerprint)
        assert torch.equal(fresh.hidden(IDS), tiny_model.hidden(IDS))


@pytest.mark.parametrize("at_once", [30, 2048])
def test_answers_and_choices_see_the_prefix(tiny_model: Model, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Cached decoding, label trees and plain rows agree with the text in front."""
    monkeypatch.setattr("tuneloop.models.nn.llama.READ_AT_ONCE", at_once)
    prompts = [IDS[0, :9].tolist(), IDS[1, :12].tolist(), IDS[2, :5].tolist(), [*IDS[0, :7].tolist(), 5, 6]]
    trie = label_trie(["a", "b", "c"], [[17, 18, END_OF_TURN], [17, 19, END_OF_TURN], [33, END_OF_TURN]])
    in_front = [BEFORE + prompt for prompt in prompts]
    expected = generate(tiny_model, in_front, max_new_tokens=6), choose(tiny_model, in_front, trie, prune=False)
    pruned = choose(tiny_model, in_front, trie, prune=True)
    add_prefix(tiny_model.net, BEFORE)
    assert [a.text for a in generate(tiny_model, prompts, max_new_tokens=6)] == [a.text for a in expected[0]]
    for found, wanted in zip(choose(tiny_model, prompts, trie, prune=False), expected[1], strict=True):
        assert found.label_scores == pytest.approx(wanted.label_scores, abs=1e-3)
    assert [a.text for a in choose(tiny_model, prompts, trie, prune=True)] == [a.text for a in pruned]


def test_only_the_prefix_gets_a_gradient(tiny_model: Model) -> None:
    prefix = add_prefix(tiny_model.net, BEFORE)
    tiny_model.hidden(IDS).square().sum().backward()  # type: ignore[no-untyped-call]
    assert prefix.embeddings.grad is not None and bool(prefix.embeddings.grad.abs().sum(1).gt(0).all())
    assert [name for name, p in tiny_model.net.named_parameters() if p.grad is not None] == ["model.prefix.embeddings"]


def test_a_prefix_of_another_model_is_refused(tiny_model: Model, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    add_prefix(tiny_model.net, BEFORE)
    save_prefix(tmp_path, tiny_model.net, "base", tiny_model.fingerprint)
    remove_prefix(tiny_model.net)
    with pytest.raises(UserError, match="another base model"):
        load_prefix(tiny_model.net, tmp_path, "other")
    save_file({"prompt_embeddings": torch.zeros(11, 10)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit this model"):
        load_prefix(tiny_model.net, tmp_path)
