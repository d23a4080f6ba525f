"""Licences of base models are known by hub name or from the model's own card, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.release.licences import hub_name, licence_of


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("llama-3-8b", "llama3"),
        ("llama-3.1-70b-instruct", "llama3.1"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama3.2"),
        ("llama-3.3-70b", "llama3.3"),
        ("smollm2-135m", "apache-2.0"),
        ("qwen2.5-7b-instruct", "apache-2.0"),
        ("qwen2.5-3b", "other"),
        ("Qwen/Qwen2.5-72B-Instruct", "other"),
        ("qwen3-8b", "apache-2.0"),
        ("gemma-3-1b-it", "gemma"),
        ("phi-4", "mit"),
        ("someone/else", None),
        ("someone/Llama-3.1-8B", None),
    ],
)
def test_hub_and_short_names(model: str, licence: str | None) -> None:
    found = licence_of(model)
    assert (found.id if found else None) == licence
    if found and licence and licence.startswith("llama"):
        assert found.notice and "Built with" in found.terms and found.url.startswith("https://www.llama.com/")


def test_llama_3_asks_for_its_own_words() -> None:
    first, later = licence_of("llama-3-8b"), licence_of("llama-3.1-8b")
    assert first and 'Built with Meta Llama 3"' in first.terms and 'begin its name with "Llama 3"' in first.terms
    assert later and 'Built with Llama"' in later.terms and 'begin its name with "Llama"' in later.terms


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# Model", "mit"),
        ("---\nlicense: llama3.2\n---\n", "llama3.2"),
        ("---\nlicense: other\nlicense_name: ours\n---\n", "other"),
        ("---\n: [broken\n---\n", None),
        ("# No head", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
    ],
)
def test_a_folder_says_it_in_its_card(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    found = licence_of(str(tmp_path))
    assert (found.id if found else None) == licence
    assert hub_name(str(tmp_path)) == "", "a folder is no name on the hub"


def test_gemma_and_the_research_licence_say_what_passing_a_model_on_demands() -> None:
    gemma, qwen = licence_of("gemma-3-270m"), licence_of("qwen2.5-3b-instruct")
    assert gemma and "ai.google.dev/gemma/terms" in gemma.notice and "3.2" in gemma.terms
    assert qwen and qwen.name == "Qwen Research License" and "commercial use needs" in qwen.terms
