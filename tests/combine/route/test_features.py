"""Static vectors: a text's is the mean of its words', which a sentence model has read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tuneloop.combine.route import features as module
from tuneloop.combine.route.features import open_static_vectors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "card", "lost", "parcel", "late", "my", "is"]


@pytest.fixture
def sentence_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random BERT that knows ten words, and a cache of its own."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), **size)).save_pretrained(folder)
    return folder


def test_a_text_is_the_mean_of_its_words_and_the_table_is_made_once(
    sentence_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = open_static_vectors(sentence_model)
    found = embed(["my card is lost", "lost is card my", "late", "", "unheard"])
    assert found.shape == (5, 16) and np.allclose(found[0], found[1], atol=1e-6), (
        "the order of words counts for nothing"
    )
    mean = embed.table[[8, 4, 9, 5]].astype(np.float32).mean(0)
    assert np.allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(np.linalg.norm(found[[0, 2, 4]], axis=1), 1, atol=1e-5) and not found[3].any()

    def refused(*_: object) -> None:
        raise AssertionError("made again")

    (file,) = (sentence_model.parent / "cache").glob("static-vectors-*")
    with monkeypatch.context() as patched:
        patched.setattr(module, "_table", refused)
        assert np.array_equal(open_static_vectors(sentence_model)(["late"]), found[2:3])
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(open_static_vectors(sentence_model)(["late"]), found[2:3]), "a damaged table is made again"
