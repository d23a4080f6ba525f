"""A model that is no Llama goes through Transformers' classes with the same answers, adapters and training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from train_helpers import changed, losses, run

from pretend_gpu import pretend_gpu
from tuneloop.core.errors import UserError
from tuneloop.inference.local.generate import generate
from tuneloop.inference.local.labels import label_trie
from tuneloop.inference.local.scoring import choose
from tuneloop.models.load import Model, load_model
from tuneloop.models.lora import lora_layers
from tuneloop.models.template import Rendered
from tuneloop.training.batches import Step
from tuneloop.training.checkpoint import State
from tuneloop.training.config import TrainConfig
from tuneloop.training.methods import attach
from tuneloop.training.optimizers import make_optimizer
from tuneloop.training.run import TrainingRun
from tuneloop.training.step import batch_loss, optimizer_step


@pytest.fixture(scope="module")
def granite_folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Granite (scaled scores and embeddings) with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-granite")
    torch.manual_seed(0)
    config = transformers.GraniteConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, tie_word_embeddings=True,
        embedding_multiplier=2.0, attention_multiplier=0.3,
    )  # fmt: skip
    transformers.GraniteForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(smollm2 / name)
    return folder


@pytest.fixture
def granite(granite_folder: Path) -> Model:
    model = load_model(str(granite_folder), dtype="float32")
    assert not model.is_own
    return model


def prompts(model: Model) -> list[list[int]]:
    system = {"role": "system", "content": "You answer questions about the weather on far planets."}
    return [
        model.template.prompt_ids([system, {"role": "user", "content": q}])  # type: ignore[list-item]
        for q in ("Rain?", "Is it windy on Jupiter in the autumn, or does it only look so?", "Why")
    ]


def test_answers_equal_those_of_transformers(granite: Model, granite_folder: Path) -> None:
    theirs = transformers.GraniteForCausalLM.from_pretrained(granite_folder, dtype=torch.float32)
    for prompt, answer in zip(prompts(granite), generate(granite, prompts(granite), max_new_tokens=8), strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8, do_sample=False,
                eos_token_id=list(granite.template.end_ids), pad_token_id=granite.template.pad_id,
            )  # fmt: skip
        assert answer.text == granite.template.decode(out[0, len(prompt) :].tolist()).strip()


@pytest.mark.filterwarnings("error")
def test_loading_and_answering_draw_no_bars_and_warn_of_nothing(
    granite_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_model(str(granite_folder), dtype="float32")
    list(generate(model, prompts(model)[:1], max_new_tokens=2))
    assert capfd.readouterr().err == ""


def test_choice_scores_equal_one_full_pass_a_label(granite: Model) -> None:
    labels = ["rain", "rain and wind", "wind"]
    tokens = [[*granite.template.encode(label), granite.template.end_ids[0]] for label in labels]
    for prompt, answer in zip(
        prompts(granite), choose(granite, prompts(granite), label_trie(labels, tokens)), strict=True
    ):
        for label, ids in zip(labels, tokens, strict=True):
            with torch.no_grad():
                logp = (granite.hidden(torch.tensor([prompt + ids]))[0] @ granite.head.t()).log_softmax(-1)
            expected = sum(float(logp[len(prompt) - 1 + i, t]) for i, t in enumerate(ids)) / len(ids)
            assert (answer.label_scores or {})[label] == pytest.approx(expected, abs=1e-4)


def test_a_cache_gives_what_reading_at_once_gives_and_selects_rows(granite: Model) -> None:
    ids = torch.randint(0, 49152, (2, 12))
    with torch.no_grad():
        whole = granite.hidden(ids)
        cache = granite.new_cache()
        granite.hidden(ids[:, :11], cache=cache)
        assert cache.length == 11
        rows = torch.tensor([1, 1, 0])
        mask = torch.ones(1, 1, 1, 12, dtype=torch.bool)
        last = granite.hidden(ids[rows, 11:], torch.tensor([[11]]), mask, cache.select(rows))
        assert cache.length == 11
    torch.testing.assert_close(last[:, 0], whole[rows, -1], atol=1e-4, rtol=1e-4)


def test_it_trains_with_an_adapter(granite: Model, tmp_path: Path) -> None:
    config = TrainConfig(rank=4, learning_rate=1e-2, lora_plus=1.0)
    trainable = attach(granite, config, seed=0)
    assert {name.rsplit(".", 1)[-1] for name in lora_layers(granite.net)} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    rows = [
        granite.template.render([{"role": "user", "content": q}, {"role": "assistant", "content": a}])
        for q, a in (("a", "yes"), ("b", "no, never"), ("c and d", "yes"))
    ]
    run = TrainingRun(granite, config, trainable, make_optimizer(trainable, config), State("key"), tmp_path)
    step = Step(((0, 1), (2,)), 0.0)
    losses = [optimizer_step(run, step, rows, 1e-2)[0] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5


def test_rows_behind_a_shared_beginning_have_the_loss_of_rows_alone(granite: Model) -> None:
    system = {"role": "system", "content": "You answer questions about the weather on far planets."}
    rows: list[Rendered] = [
        granite.template.render([system, {"role": "user", "content": q}, {"role": "assistant", "content": "No."}])  # type: ignore[list-item]
        for q in ("Rain?", "Wind from the south, is there any?")
    ]
    with torch.no_grad():
        together = float(batch_loss(granite, rows, 1.0))
        apart = sum(float(batch_loss(granite, [row], 1.0)) for row in rows)
    assert together == pytest.approx(apart, rel=1e-4)


def answers_and_scores(folder: Path) -> tuple[list[tuple[int, ...]], list[dict[str, float] | None]]:
    model = load_model(str(folder), dtype="float32")
    labels = ["rain", "rain and wind", "wind"]
    tokens = [[*model.template.encode(label), model.template.end_ids[0]] for label in labels]
    answers = generate(model, prompts(model), max_new_tokens=8)
    chosen = choose(model, prompts(model), label_trie(labels, tokens))
    return [answer.token_ids for answer in answers], [answer.label_scores for answer in chosen]


def test_on_a_gpu_it_answers_scores_and_trains_as_on_the_processor(granite_folder: Path, tmp_path: Path) -> None:
    answers, scores = answers_and_scores(granite_folder)
    config = changed(epochs=0.5, evaluations=2)
    run(granite_folder, tmp_path / "here", config)
    with pretend_gpu() as gpu:
        answers_there, scores_there = answers_and_scores(granite_folder)
        _, model = run(granite_folder, tmp_path / "there", config)
        assert model.device.type == "cuda" and not model.is_own
    assert answers_there == answers
    for here, there in zip(scores, scores_there, strict=True):
        assert there == pytest.approx(here, abs=1e-4)
    mine, theirs = (
        [loss for _, *both in losses(tmp_path / place) for loss in both if loss is not None]
        for place in ("here", "there")
    )
    assert theirs == pytest.approx(mine, rel=2e-4)
    assert not [kernel for kernel, _ in gpu.attention if kernel == "math"]


def test_what_transformers_cannot_load_is_told(tmp_path: Path, smollm2: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(smollm2 / name)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_architecture"}')
    with pytest.raises(UserError, match="Transformers can't load this model"):
        load_model(str(tmp_path))
