"""Each step from 70B to 8B, on tiny models of Llama 3's architecture with its real tokenizer: the steps that docs/distill.md names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl

Said = pytest.CaptureFixture[str]
TINY = ["train.epochs=1", "train.rows_per_step=8", "train.evaluations=1", "track.report_to=none"]


def write_llama3(folder: Path, like: Path, tokenizer: Path, layers: int, width: int, tied: bool) -> Path:
    """A random Llama 3 with the whole vocabulary of 128,256 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    kept = read_json(like / "config.json")
    torch.manual_seed(layers)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128256, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=tied,
            rope_parameters=kept["rope_parameters"], bos_token_id=128000, eos_token_id=[128001, 128008, 128009],
        )
    ).save_pretrained(folder)  # fmt: skip
    shutil.copy(tokenizer, folder / "tokenizer.json")
    shutil.copy(like / "tokenizer_config.json", folder)
    return folder


def told(said: Said, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


@pytest.mark.nightly
@pytest.mark.slow
def test_from_a_tuned_teacher_in_four_bits_to_a_student_that_answers(
    tiny_llama: Path, llama3_tokenizer: Path, capsys: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    big = str(write_llama3(tmp_path / "big", tiny_llama, llama3_tokenizer, 4, 64, False))
    small = str(write_llama3(tmp_path / "llama-small", tiny_llama, llama3_tokenizer, 2, 32, True))
    text = ["rain", "snow", "sun", "fog", "hail", "wind", "storm", "frost", "cloud", "dew", "ice", "mist"]
    rows = [{"prompt": f"What is the weather in town {i}?", "completion": f"There is {word} in town {i}."} for i, word in enumerate(text * 3)]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told(
        capsys,
        "prepare",
        "rows.jsonl",
        "duplicates.near=false",
        "split.val=0.1",
        "split.test=0.2",
        "--model",
        big,
        "--out",
        "data",
    )
    told(capsys, "train", "data", f"model={big}", "train.method=qlora", *TINY, "--out", "teacher")

    stored = [
        "distill",
        "teacher",
        small,
        "--dataset",
        "data",
        "--out",
        "student",
        "--answers",
        "own",
        "--level",
        "logits",
        "--no-control",
        *TINY,
    ]
    found = told(capsys, *stored, "train.method=full")
    (about,) = Path("student/distill").glob("logits-*/teacher.json")
    positions = sum(line["positions"] for line in read_jsonl(about.parent / "rows.jsonl"))
    assert read_json(about)["vocabulary"] == 128256
    assert (about.parent / "tokens.bin").stat().st_size == 770 * positions, "bytes of a position, as the page says"
    assert found["results"]["n"] and found["results"]["student_cost"]["parameters"] < 2**23

    live = [
        "distill",
        "teacher",
        small,
        "--dataset",
        "data",
        "--out",
        "live",
        "--answers",
        "own",
        "--level",
        "live",
        "--no-control",
    ]
    told(capsys, *live, "train.teacher_bits=4", "train.divergence=jensen-shannon", "train.method=full", *TINY)
    assert any("divergence" in line for line in read_jsonl(Path("live/metrics.jsonl")))
    told(capsys, "export", "student", "--out", "small")
    assert read_json(Path("small/config.json"))["vocab_size"] == 128256
