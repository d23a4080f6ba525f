"""The closing report on terminals of several widths, and where there is no terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tuneloop.report.facts import next_commands, read_run
from tuneloop.report.html import write_page
from tuneloop.report.samples import samples_part
from tuneloop.report.terminal import print_closing


def shown(run: Path, width: int, **options: object) -> str:
    file = io.StringIO()
    print_closing(run, Console(file=file, width=width, **options))  # type: ignore[arg-type]
    return file.getvalue()


class NoUtf8(io.StringIO):
    encoding = "ascii"


@pytest.mark.parametrize("kind", ["classification", "generation"])
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(make_run: Callable[..., Path], kind: str, width: int) -> None:
    lines = shown(make_run(kind), width).splitlines()
    assert max(cell_len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_the_closing_table_holds_what_was_promised(
    make_run: Callable[..., Path], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    monkeypatch.chdir(run.parent)  # the folder's whole name would break anywhere
    text = shown(Path(run.name), width)
    flat = " ".join(text.split())
    for part in (
        "0.87",
        "[0.84, 0.90]",
        "p < 0.001",
        "p = 0.034",
        "4.2 min",
        "1.3 GiB",
        "$0.004",
        "predicted",
        "MiniLM + logistic regression",
    ):
        assert part in flat, part
    for path in ("adapter", "report.html"):
        assert path in text
    assert "tuneloop evaluate" in text and "--split val" in text
    assert "tuneloop export" in text
    assert "\x1b" not in text  # plain where there is no terminal


def test_side_effects_and_prices_are_told(make_run: Callable[..., Path]) -> None:
    run = make_run()
    found = json.loads((run / "eval.json").read_text())
    found |= {
        "forgetting": {"score": {"value": 0.2}, "words": "It has forgotten."},
        "leaderboard_words": ["1,000 requests cost $0.0037."],
    }
    (run / "eval.json").write_text(json.dumps(found))
    text = shown(run, 80)
    assert "It has forgotten.\n" in text and "1,000 requests cost $0.0037.\n" in text


def test_structured_answers_stand_side_by_side_when_wide_and_stacked_when_narrow(make_run: Callable[..., Path]) -> None:
    run = make_run("generation")
    wide, narrow = shown(run, 140), shown(run, 80)
    header = next(line for line in wide.splitlines() if line.strip().startswith("prompt"))
    assert [word for word in header.split()] == ["prompt", "reference", "zero-shot", "few-shot", "tuned"]
    assert sum(line.startswith("tuned") for line in narrow.splitlines()) >= 5
    assert any(line.split()[:1] == ["Issue:"] for line in narrow.splitlines())


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_samples_are_those_that_the_page_shows_first(make_run: Callable[..., Path], kind: str) -> None:
    run = make_run(kind)
    part = samples_part(read_run(run))
    text = " ".join(shown(run, 200).split())
    assert part["note"] in text
    places = [text.find(" ".join(str(entry["prompt"]).split())[:40]) for entry in part["shown"][:5]]
    assert -1 not in places and places == sorted(places)
    for item in part["shown"][:5]:
        assert " ".join(item["why"].split())[:30] in text


def test_long_label_names_are_never_broken(make_run: Callable[..., Path]) -> None:
    run = make_run()
    labels = json.loads((run / "dataset/dataset.json").read_text())["labels"]
    for width in (80, 120):
        text = shown(run, width)
        block = text[text.index("Rows that tell the most come first") :]
        answers = [line.split()[-1] for line in block.splitlines() if line.startswith(("reference", "tuned"))]
        assert len(answers) == 10 and set(answers) <= set(labels)


def test_control_characters_of_a_model_do_not_reach_the_terminal(make_run: Callable[..., Path]) -> None:
    run = make_run()
    rows = [
        {
            "id": "a",
            "prompt": "p\x1b]0;title\x07",
            "reference": "r\x9b31m",
            "prediction": "[bold]\x1b[2J",
            "label": "r",
            "baselines": {},
        }
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = shown(run, 100)
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "[bold]" in text  # shown, not taken as markup


def test_a_console_without_utf_8_gets_plain_letters(make_run: Callable[..., Path]) -> None:
    file = NoUtf8()
    print_closing(make_run(), Console(file=file, width=80))
    text = file.getvalue()
    text.encode("ascii")
    assert "0.87" in text and "p < 0.001" in text


def test_colour_only_on_a_terminal(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert "\x1b[" in shown(run, 80, force_terminal=True, color_system="standard", legacy_windows=False)


@pytest.mark.parametrize("missing", ["eval.json", "samples.jsonl", "run.json", "plan.json", "config.yaml"])
def test_a_partial_run_prints_what_there_is(make_run: Callable[..., Path], missing: str) -> None:
    run = make_run()
    (run / missing).unlink()
    text = shown(run, 80)
    assert ("report.html" in text) and ("Comparison" in text) == (missing != "eval.json")


def test_the_next_command_quotes_a_path_with_spaces(make_run: Callable[..., Path]) -> None:
    run = make_run()
    spaced = run.rename(run.parent / "my run")
    assert "'" in next(line for line in shown(spaced, 300).splitlines() if "tuneloop evaluate" in line)


@pytest.mark.parametrize(
    ("evaluated", "empty", "command"),
    [
        (True, ["val"], "tuneloop compare RUN OTHER_RUN"),
        (False, [], "tuneloop evaluate RUN"),
        (False, ["test"], "tuneloop evaluate RUN --split val"),
        (False, ["val", "test"], "tuneloop evaluate RUN --data FILE"),
    ],
)
def test_the_next_command_names_a_split_that_has_rows(
    make_run: Callable[..., Path], evaluated: bool, empty: list[str], command: str
) -> None:
    run = make_run()
    if not evaluated:
        (run / "eval.json").unlink()
    file = run / "dataset" / "dataset.json"
    manifest = json.loads(file.read_text())
    for split in empty:
        manifest["splits"][split]["rows"] = 0
    file.write_text(json.dumps(manifest))
    assert next_commands(read_run(run))[0] == command.replace("RUN", str(run), 1)


def test_a_full_run_names_the_folder_that_it_has(make_run: Callable[..., Path]) -> None:
    run = make_run()
    manifest = json.loads((run / "run.json").read_text())
    del manifest["adapter"]
    (run / "run.json").write_text(json.dumps({**manifest, "method": "full", "weights": "model"}))
    text = shown(run, 120).replace("\n", "")
    assert f"{run}/model" in text and f"{run}/adapter" not in text
    write_page(run)
    page = (run / "report.html").read_text()
    assert f"Model: <code>{run}/model</code>" in page and "Next: <code>tuneloop evaluate" in page
