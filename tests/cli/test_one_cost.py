"""`plan` and `advise` on files, data sets and recipes: one price, one recommendation, and what `run` remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_of

from tuneloop.cli.main import main
from tuneloop.core.ui import reporting
from tuneloop.pipeline.advise import remind
from tuneloop.pipeline.baselines import reuse_baselines
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import Recipe
from tuneloop.records.rows import Dataset

TEXTS = {"refund": "I want my money back for order {n}, please answer {w}", "shipping": "Where is parcel number {n} now, it is {w} late",
         "login": "My password {n} is refused when I sign in on a {w}"}  # fmt: skip
WORDS = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "phone",
    "laptop",
    "week",
    "month",
    "year",
    "tablet",
    "desk",
    "train",
    "garden",
    "holiday",
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, with no prices and no runs of this machine."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mails(here: Path) -> Path:
    rows = [
        {"text": text.format(n=1000 + 37 * n, w=WORDS[n % len(WORDS)]), "label": name}
        for n in range(60)
        for name, text in TEXTS.items()
    ]
    file = here / "mails.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert status in (0, 1), err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_file_of_examples_has_one_price_in_both_commands(mails: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advised = answer(capsys, "advise", str(mails), "--model", "llama-3.1-8b")
    planned = answer(capsys, "plan", str(mails), "--model", "llama-3.1-8b", "--method", advised["method"])
    training = advised["trainings"][advised["method"]]
    assert planned["cost"] == training["cost"] and planned["cost"]["usd"] > 0
    assert (planned["gpu"], planned["gpus"]) == (training["gpu"], training["gpus"])
    counted = json.loads((Path("evals/advise-mails/dataset/dataset.json")).read_text())
    assert advised["question"]["rows"] == counted["splits"]["train"]["rows"] > 50
    for said in (advised["assumptions"], planned["assumptions"]):
        assert any("smollm2-135m" in line and "not on this machine" in line for line in said)


def test_both_print_the_same_lines_about_cost(mails: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = ["--engineer-hours", "10", "--usd-per-engineer-hour", "50"]
    shown = []
    for arguments in (
        ["advise", str(mails), "--few-shot", "0.5", "--verbose"],
        ["plan", str(mails), "--model", "llama-3.1-8b", "--method", "prefix"],
    ):
        assert main([*arguments, *people]) == 0
        lines = capsys.readouterr().out.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("Cost of this run: "))
        shown.append(lines[start : start + 4])
    assert shown[0] == shown[1]
    assert any("$500  engineering: 10 hours x $50 an hour" in line for line in shown[0])


def test_a_prepared_data_set_and_a_recipe_are_read_like_the_file(
    mails: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(mails), "--quiet"]) == 0
    (here / "job.yaml").write_text(f"name: mails\ndata: {{sources: [{mails}]}}\ntrain: {{rank: 8, epochs: 2}}\n")
    capsys.readouterr()
    gpu = ["--gpu", "l40s"]
    of_file = answer(capsys, "plan", str(mails), *gpu)
    of_folder = answer(capsys, "plan", "datasets/mails", *gpu)
    of_recipe = answer(capsys, "plan", "job.yaml", *gpu)
    assert of_file["model"] == "smollm2-135m" and of_folder["cost"] == of_file["cost"]
    assert of_recipe["settings"]["rank"] == 8
    advised = answer(capsys, "advise", "job.yaml", "--model", "llama-3.1-8b")
    planned = answer(capsys, "plan", "job.yaml", "--model", "llama-3.1-8b", "--method", advised["method"])
    assert planned["cost"] == advised["trainings"][advised["method"]]["cost"], "with the recipe's rank and epochs"
    assert of_recipe["time"]["breakdown"]["train"] == pytest.approx(
        of_file["time"]["breakdown"]["train"] * 2 / 3, rel=0.05
    )


@pytest.mark.parametrize("command", ["plan", "advise"])
def test_a_path_that_is_not_there_is_named_with_its_nearest(
    command: str, mails: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "mail.jsonl", "--model", "llama-3.1-8b"]) == 2
    assert "did you mean mails.jsonl?" in capsys.readouterr().err


def test_a_path_is_not_looked_up_on_the_hub(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs" / "tickets-1a2b").mkdir(parents=True)
    for name, next_step in (
        ("runs/tickets-1a2c", "runs/tickets-1a2b"),
        ("./none", "check the path"),
        ("models/mine", "models does not exist"),
    ):
        assert main(["plan", "--model", name]) == 2
        said = capsys.readouterr().err
        assert "No such file or folder" in said and next_step in said and "hub" not in said


def test_a_plan_ends_with_one_recommendation_and_shows_ten_machines(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", "llama-3.1-8b", "--tokens", "1M"]
    found = answer(capsys, *arguments)
    main(arguments)
    short = capsys.readouterr().out
    main([*arguments, "--all"])
    long = capsys.readouterr().out
    assert short.strip().splitlines()[-1] == f"Recommendation: {found['recommendation']}"
    assert (
        found["recommendation"].startswith("Rent an ")
        and "minutes" in found["recommendation"]
        and "$0." in found["recommendation"]
    )
    rows = [sum(line[:2] in ("+ ", "~ ", "- ") for line in text.splitlines()) for text in (short, long)]
    assert rows == [10, len(found["table"])]
    assert f"{len(found['table']) - 10} more" in short


def test_where_nothing_fits_the_recommendation_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "plan", "--model", "llama-3.1-8b", "--gpu", "rtx4090", "--gpus", "1")
    assert not found["fits"] and found["alternatives"][0]["change"] in found["recommendation"]


def test_advice_not_to_tune_is_kept_and_said_once_before_a_run(
    mails: Path, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    kept = answer(capsys, "advise", str(mails), "--few-shot", "0.97")
    assert kept["answer"] == "dont"
    written = json.loads(Path("evals/advise-mails/advise.json").read_text())
    said: list[str] = []
    job = RunContext(Recipe(name="mails"), here / "runs" / "mails")
    same = Dataset("x", manifest_of(hash=written["dataset_hash"]), (), (), ())
    with reporting(say=said.append):
        remind(job, same)
    assert len(said) == 2 and "Don't fine-tune" in said[0] and "continues" in said[1]
    with reporting(say=said.append):
        remind(job, Dataset("y", manifest_of(hash="other"), (), (), ()))
    assert len(said) == 2, "other data, no reminder"
    (job.folder / "checkpoints").mkdir(parents=True)
    (job.folder / "checkpoints" / "step-1.pt").write_bytes(b"")
    with reporting(say=said.append):
        remind(job, same)
    assert len(said) == 2, "a run that goes on was reminded before"


def test_a_run_on_the_same_file_reminds_of_it_and_goes_on(
    mails: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tuneloop.pipeline.run as pipeline
    from tuneloop.recipe import recipe_of

    assert answer(capsys, "advise", str(mails), "--few-shot", "0.97")["answer"] == "dont"

    class AtTheBaselinesError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise AtTheBaselinesError

    monkeypatch.setattr(pipeline, "baseline_stage", stop)
    said: list[str] = []
    with pytest.raises(AtTheBaselinesError), reporting(say=said.append):
        pipeline.run_job(recipe_of(str(mails), ["track.report_to=none"]))
    assert sum("Don't fine-tune" in line for line in said) == 1
    assert any("evals/advise-mails/advise.json" in line for line in said)


def test_baselines_with_another_key_are_not_taken(here: Path) -> None:
    before = here / "evals" / "advise-mails" / "baselines"
    before.mkdir(parents=True)
    (before / "baselines.json").write_text(json.dumps({"version": 1, "key": "k1", "systems": {}}))
    job = RunContext(Recipe(name="mails"), here / "runs" / "mails")
    job.folder.mkdir(parents=True)
    assert not reuse_baselines(job, "k2") and not (job.folder / "baselines").exists()
    assert reuse_baselines(job, "k1")
    assert json.loads((job.folder / "baselines" / "baselines.json").read_text())["key"] == "k1"


@pytest.mark.slow
def test_measuring_says_that_it_is_a_stand_in_and_a_run_takes_its_baselines(
    mails: Path, capsys: pytest.CaptureFixture[str], small_packaged: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in small_packaged.items():
        monkeypatch.setenv(name, value)
    settings = ["evaluate.limit=9", "baselines.few_shot=3"]
    status = main(["advise", str(mails), "--measure", "--model", "llama-3.1-8b", "--json", *settings])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert status in (0, 1)
    assert err.index("smollm2-135m, a small model, is measured in its place") < err.index("baseline ")
    assert found["question"]["model"] == "llama-3.1-8b"
    assert main(["run", str(mails), "train.max_minutes=0.05", "track.report_to=none", "--verbose", *settings]) == 0
    said = capsys.readouterr().err
    assert "measured before by `tuneloop advise`" in said
    assert "zero-shot:" not in said, "not measured again"


def test_a_budget_that_does_not_suffice_is_a_no_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "advise",
        "--rows",
        "3000",
        "--few-shot",
        "0.6",
        "--target",
        "0.8",
        "--engineer-hours",
        "16",
        "--usd-per-engineer-hour",
        "73",
    ]
    assert main([*asked, "--budget", "600"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(
        "Don't fine-tune: Not within this budget. LoRA on llama-3.1-8b takes $1,168 expected (engineering $1,168)"
    )
    assert "the budget is $600" in said and "People's time alone" in said
    assert main([*asked, "--budget", "3k"]) == 0
    assert "Within the budget of $3,000" in " ".join(capsys.readouterr().out.split())


def test_a_budget_names_what_stays_within_it(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "advise",
        "--rows",
        "300k",
        "--tokens-per-row",
        "2k",
        "--model",
        "llama-3.3-70b",
        "--few-shot",
        "0.6",
        "--target",
        "0.8",
    ]
    assert main([*asked, "--budget", "50"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    instead = said.partition("Within it: ")[2]
    assert instead.startswith("LoRA on llama-") and "(--model llama-" in instead
    smaller = instead.partition("(--model ")[2].partition(")")[0]
    found = answer(capsys, *[smaller if word == "llama-3.3-70b" else word for word in asked], "--budget", "50")
    assert found["answer"] == "tune"


def test_the_cheapest_machine_is_one_that_ends_within_a_week(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(
        capsys, "plan", "--model", "llama-3.3-70b", "--tokens", "1.8B", "--grad-ckpt", "--loss-kernel", "fused"
    )
    slow = [row for row in found["table"] if row["fits"] and row["hours"] > 168]
    assert found["time"]["hours"] <= 168 and slow
    assert min(row["usd"] for row in slow if row["usd"]) < found["cost"]["usd"], "a cheaper one would take weeks"


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.3-70b"])
def test_the_plan_that_advice_proposes_names_its_price(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    advised = answer(capsys, "advise", "--rows", "3000", "--tokens-per-row", "700", "--model", model, "--tier", "spot")
    step = next(step for step in advised["steps"] if step.startswith("tuneloop plan"))
    planned = answer(capsys, *step.partition(":")[0].split()[1:])
    assert planned["cost"] == advised["trainings"][advised["method"]]["cost"]


def test_settings_without_data_and_a_second_place_are_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "train.epochs=3"]) == 2
    assert "is a recipe's setting" in capsys.readouterr().err
    assert main(["plan", "a.jsonl", "b.jsonl"]) == 2
    assert "b.jsonl is one place too many" in capsys.readouterr().err
