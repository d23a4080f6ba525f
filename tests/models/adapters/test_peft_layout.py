"""Ranks of modules by the patterns of `adapter_config.json`, which others wrote."""

from __future__ import annotations

import pytest

from tuneloop.core.errors import UserError
from tuneloop.models.adapters.peft_layout import rank_of


def test_patterns_of_an_adapter_are_bounded() -> None:
    assert rank_of({"r": 8, "rank_pattern": {"q_proj": 4}}, "model.layers.0.self_attn.q_proj") == 4
    assert rank_of({"r": 8, "rank_pattern": {"q_proj": 4}}, "model.layers.0.self_attn.k_proj") == 8
    with pytest.raises(UserError, match="takes more than"):
        rank_of({"r": 8, "rank_pattern": {"(?:a|aa)+": 4}}, "a" * 60 + "!")
    with pytest.raises(UserError, match="not a regular expression"):
        rank_of({"r": 8, "rank_pattern": {"(": 4}}, "x")
