"""The proof of a chat template: what is trained, asked and stopped at is one thing, or the proof says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.models.chat.proof import TemplateFinding, first_difference, prove_template, refuse_wrong_template
from tuneloop.models.chat.template import load_template
from tuneloop.records.rows import Row

PLAIN = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TURNS = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way."}]
Make = Callable[..., Path]


@pytest.fixture
def make(smollm2: Path, tmp_path: Path) -> Make:
    """Makes a folder with the packaged model's tokenizer and a template of one's own."""

    def write(template: str = PLAIN, settings: dict[str, Any] | None = None, generation: Any = None) -> Path:
        for name in ("tokenizer.json", "config.json"):
            shutil.copy(smollm2 / name, tmp_path / name)
        known = json.loads((smollm2 / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({**known, "chat_template": template, **(settings or {})})
        )
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        return tmp_path

    return write


def findings(folder: Path, *conversations: list[dict[str, Any]], tools: Any = ()) -> dict[str, TemplateFinding]:
    rows = [Row(f"r{i}", turns, tools=list(tools)) for i, turns in enumerate(conversations or [TURNS])]  # type: ignore[arg-type]
    return {finding.name: finding for finding in prove_template(folder, load_template(folder), rows).findings}


def test_a_sound_template_has_no_finding_and_shows_what_is_trained(make: Make) -> None:
    folder = make()
    proof = prove_template(folder, load_template(folder), [Row("a", TURNS)])  # type: ignore[arg-type]
    assert proof.level == "ok" and [finding.name for finding in proof.findings] == ["padding"]
    assert proof.example == [
        ("<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n", 0),
        ("On its way.<|im_end|>", 1),
        ("\n", 0),
    ]


@pytest.mark.parametrize(
    ("change", "conversations", "name", "level", "blocks", "text"),
    [
        ((" + '<|im_end|>'", ""), [TURNS], "renders", "error", True, "does not end the assistant's turn"),
        (("{%- for", "{{- bos_token + bos_token }}{%- for"), [TURNS], "bos", "error", True, "twice"),
        (("{%- for", "{%- for i in range(99999) %}{{- 'x' * 99999 }}{%- endfor %}{%- for"), [TURNS], "renders", "error", True, "it makes more text"),
        (("{%- for", "{{- messages.__class__.__mro__ }}{%- for"), [TURNS], "renders", "error", True, "unsafe"),
        (
            ("{%- for", "{{- '<|im_start|>system\\nKnowledge of 2023. ' + (messages[0].content if messages[0].role == 'system' else '') + '<|im_end|>' }}{%- for"),
            [TURNS], "added text", "warn", False, "'Knowledge of 2023.'",
        ),
        (
            ("{%- for", "{{- strftime_now('%d %b %Y') }}{%- for"),
            [TURNS], "date", "warn", False, "1 row, so that prompts differ from day to day",
        ),
        (
            ("{%- for m in messages %}", "{%- for m in messages if m.role != 'system' %}"),
            [[{"role": "system", "content": "Be brief"}, *TURNS]], "system", "error", True, "drops system turns; 1 row of 1",
        ),
        (
            ("{%- for m in messages %}", "{%- for m in messages if m.role != 'system' %}"),
            [TURNS], "system", "warn", False, "drops system turns",
        ),
        (
            ("{%- for", "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are Q.<|im_end|>\\n' }}{%- endif %}{%- for"),
            [TURNS], "default system prompt", "error", False, "'You are Q.'",
        ),
        (
            ("m.content +", "(m.content if loop.last or m.role == 'user' else 'cut') +"),
            [[*TURNS, *TURNS]], "earlier turns", "warn", False, "1 of 2 answers are read and not trained",
        ),
        (
            ("m.content +", "(m.content if loop.last or m.role == 'user' else 'cut') +"),
            [TURNS], "earlier turns", "ok", False, "no row has such an answer",
        ),
        (
            ("m.content +", "m.content.split('</think>')[-1] +"),
            [[TURNS[0], {**TURNS[1], "reasoning_content": "It was sent."}]],
            "reasoning", "ok", False, "1 row with reasoning, which is trained in last turns",
        ),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_named_with_its_row(
    make: Make, change: tuple[str, str], conversations: Any, name: str, level: str, blocks: bool, text: str
) -> None:
    folder = make(PLAIN.replace(*change), {"bos_token": "<|im_start|>"} if name == "bos" else None)
    finding = findings(folder, *conversations)[name]
    assert (
        (finding.level, finding.blocks) == (level, blocks)
        and text in finding.message
        and (finding.remedy or level == "ok")
    )


def test_tools_that_the_template_drops_are_an_error_only_where_rows_have_some(make: Make) -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {}}}
    folder = make(PLAIN.replace("{%- for", "{%- if tools %}{%- endif %}{%- for", 1))
    assert findings(folder, tools=[tool])["tools"].blocks and "tools" not in findings(folder)


def test_an_end_at_which_other_engines_run_on_is_a_warning(make: Make) -> None:
    assert findings(make(settings={"eos_token": "<|endoftext|>"}, generation=0))["stops"].level == "warn"
    assert "stops" not in findings(make(settings={"eos_token": "<|endoftext|>"}, generation=[0, 2]))


def test_control_tokens_without_a_trained_embedding_are_found(make: Make) -> None:
    folder = make()
    weight = torch.randn(49152, 8, generator=torch.Generator().manual_seed(0))
    save_file({"model.embed_tokens.weight": weight}, folder / "model.safetensors")
    assert "embeddings" not in findings(folder)
    weight[2] = 0.0
    save_file({"model.embed_tokens.weight": weight}, folder / "model.safetensors")
    finding = findings(folder)["embeddings"]
    assert finding.level == "error" and "'<|im_end|>'" in finding.message
    save_file({"model.embed_tokens.weight": weight[:2].clone()}, folder / "model.safetensors")
    assert findings(folder)["embeddings"].blocks


def test_two_templates_that_differ_are_found(make: Make) -> None:
    folder = make()
    (folder / "chat_template.jinja").write_text(PLAIN + "\n")
    assert "two templates" not in findings(folder)
    (folder / "chat_template.jinja").write_text(PLAIN.replace("assistant", "model"))
    assert findings(folder)["two templates"].level == "error"


def test_a_training_is_refused_before_it_spends(make: Make) -> None:
    folder = make(PLAIN.replace(" + '<|im_end|>'", ""))
    with pytest.raises(UserError, match="The chat template fails: 1 row of 1 can't be rendered"):
        refuse_wrong_template(folder, load_template(folder), [Row("a", TURNS)], "m")  # type: ignore[arg-type]


def test_the_command_proves_a_file_and_its_exit_status_says_so(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = make(), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": TURNS}) + "\n" for _ in range(3)))
    assert main(["data", "check", "--template", str(folder), str(rows)]) == 0
    printed = capsys.readouterr().out
    printed = "".join(printed.split())  # a terminal's lines are short
    assert "[[Onitsway.<|im_end|>]]" in printed and "holdson3rows" in printed
    make(PLAIN.replace(" + '<|im_end|>'", ""))
    assert main(["data", "check", str(rows), "--template", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["name"] == "renders"


def test_rows_are_read_before_the_model_comes_and_as_settings_or_a_recipe_say(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows, recipe = make(), tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    rows.write_text(json.dumps({"said": "Where is it?", "meant": "track"}) + "\n")
    recipe.write_text(f"version: 1\nname: a\ndata: {{sources: [{rows}], text: said, label: meant}}\n")
    columns = ["data.text=said", "data.label=meant"]
    assert main(["data", "check", str(rows), *columns, "--template", str(folder), "--json"]) == 0
    assert main(["data", "check", str(recipe), "--template", str(folder), "--json"]) == 0
    assert main(["data", "check", str(folder), *columns]) == 2

    def never(*_: Any) -> Any:
        raise AssertionError("the model came before the rows")

    capsys.readouterr()
    monkeypatch.setattr("tuneloop.models.files.names.resolve", never)
    assert main(["data", "check", str(rows), "--template", "smollm2-135m"]) == 2
    assert "said" in capsys.readouterr().err


def test_an_export_that_renders_a_row_otherwise_is_told_by_that_row(make: Make) -> None:
    trained = load_template(make())
    rows: list[Any] = [Row("a", TURNS), Row("b", [{"role": "system", "content": "Be brief"}, *TURNS])]  # type: ignore[list-item]
    exported = load_template(make(PLAIN.replace("m.role +", "('user' if m.role == 'system' else m.role) +")))
    assert first_difference(trained, trained, rows) is None
    assert first_difference(trained, exported, rows) is rows[1]


def test_a_model_without_a_template_is_said_to_have_none(make: Make) -> None:
    folder = make(template="")
    finding = findings(folder)["no template"]
    assert finding.level == "ok" and "comes without a chat template" in finding.message


def test_a_system_prompt_that_comes_with_tools_only_is_found_too(make: Make) -> None:
    head = "{%- if messages[0].role != 'system' and tools %}{{- '<|im_start|>system\\nYou call tools.' + tools | tojson + '<|im_end|>\\n' }}"
    head += "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + tools | tojson + '<|im_end|>\\n' }}{%- endif %}"
    tools = [{"type": "function", "function": {"name": "f", "description": "x", "parameters": {}}}]
    source = head + PLAIN.replace("in messages %}", "in messages if m.role != 'system' %}")
    found = findings(make(source), TURNS, tools=tools)
    assert "'You call tools.'" in found["default system prompt"].message
    assert "default system prompt" not in findings(make(source))


def test_answers_that_are_lost_only_where_there_are_tools_are_counted(make: Make) -> None:
    last = "{%- if m.role == 'user' and loop.index0 == ns.asks and tools %}{{- tools | tojson }}{%- endif %}"
    asks = "{%- set ns = namespace(asks=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.asks = loop.index0 %}{%- endif %}{%- endfor %}"
    source = asks + PLAIN.replace("{%- for m in messages %}", "{%- for m in messages %}" + last)
    tools = [{"type": "function", "function": {"name": "f", "description": "x", "parameters": {}}}]
    assert "earlier turns" not in findings(make(source), [*TURNS, *TURNS])
    assert "1 of 2 answers" in findings(make(source), [*TURNS, *TURNS], tools=tools)["earlier turns"].message
