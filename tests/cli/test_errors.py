"""Bad input is normal input: exit status 2 and one to three lines (what, where, next), never a traceback or half a file."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from families import folder_of

from tuneloop.cli.main import main
from tuneloop.recipe import load_recipe

Fails = Callable[..., str]


def rows(count: int = 40) -> list[dict[str, Any]]:
    """Texts that resemble each other too little to be near-duplicates."""
    things = ["order", "parcel", "invoice", "box", "lamp", "kettle", "spoon", "voucher", "login", "account"]
    places = ["Oslo", "Bergen", "Turin", "Ghent", "Porto", "Graz", "Lyon", "Riga", "Cork", "Delft"]
    asked = ["where is it", "money back please", "thank you"]
    return [
        {"text": f"Case {i}: {things[i % 10]} sent to {places[(i * 7 + i // 10) % 10]} on day {i * 13 % 29}, {asked[i % 3]} {i * 37 % 101}?",
         "label": ["late", "refund", "praise"][i % 3]}
        for i in range(count)
    ]  # fmt: skip


def write_rows(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with `good.jsonl`."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "good.jsonl", rows())
    return tmp_path


@pytest.fixture
def fails(here: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Fails]:
    """Run a command line that must fail as it should; returns the message."""

    def run(*arguments: str) -> str:
        status = main([*arguments])
        out, err = capsys.readouterr()
        check_failure(status, out, err)
        status = main([*arguments, "--json"])
        out, _ = capsys.readouterr()
        assert status == 2
        assert json.loads(out)["error"]["what"], "with --json, exactly one object"
        return err[err.index("Error:") :]

    yield run
    check_nothing_half_written(here)


def check_failure(status: int, out: str, err: str) -> None:
    assert status == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert "should not happen" not in err
    message = err[err.index("Error:") :].strip().split("\n")
    assert 1 <= len(message) <= 3, err
    assert message[-1].startswith("  next:  "), err


def check_nothing_half_written(folder: Path) -> None:
    left = [path.name for path in folder.rglob("*")]
    assert not [name for name in left if name.endswith(".tmp")]
    assert not {"dataset.json", "run.json", "eval.json", "plan.json", "report.html"} & set(left)


# --- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ messages.__class__.__mro__ }}", "unsafe"), ("{% for i in range(10000000) %}x{% endfor %}", "above 1,000,000"),
     ("{% for m in messages %}", "endfor")],
)  # fmt: skip
def test_a_hostile_or_broken_chat_template_is_refused(
    template: str, reason: str, fails: Fails, here: Path, smollm2: Path
) -> None:
    folder_of("qwen2", here / "model", vocab_size=49152)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (here / "model" / name).symlink_to(smollm2 / name)
    (here / "model" / "chat_template.jinja").write_text(template)
    message = fails("evaluate", "model", "--data", "good.jsonl", "limit=2")
    assert reason in message and "where: the model's chat template" in message and "data check --template" in message


# --- recipe and settings -----------------------------------------------------------------------------


def test_missing_recipe(fails: Fails) -> None:
    assert "nope.yaml" in fails("run", "nope.yaml")


def test_unknown_key_offers_the_nearest(fails: Fails, here: Path) -> None:
    (here / "r.yaml").write_text("train: {epoch: 2}\n")
    message = fails("run", "r.yaml")
    assert "epoch" in message and "r.yaml" in message and "did you mean train.epochs?" in message


@pytest.mark.parametrize("setting", ["train.epoch=2", "epochs=many", "train.schedule=steps", "data.split.test=0.9"])
def test_bad_override(fails: Fails, setting: str) -> None:
    assert setting.partition("=")[0].split(".")[-1] in fails("train", "good.jsonl", setting)


def test_an_argument_that_is_no_setting(fails: Fails) -> None:
    assert "key=value" in fails("run", "good.jsonl", "epochs")


def test_broken_yaml_names_the_line(fails: Fails, here: Path) -> None:
    (here / "r.yaml").write_text("name: a\ndata: [unclosed\nmodel: x: y\n")
    assert "r.yaml:" in fails("plan", "r.yaml")


def test_an_unknown_key_is_said_to_stand_where_it_was_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text("version: 1\nname: a\ndata: {sources: [rows.jsonl]}\n")
    assert main(["run", "mine.yaml", "train.epoch=2"]) == 2
    assert "where: the command line" in capsys.readouterr().err
    (here / "mine.yaml").write_text("version: 1\nname: a\ndata: {sources: [rows.jsonl]}\ntrain: {epoch: 2}\n")
    assert main(["run", "mine.yaml", "seed=2"]) == 2
    assert "where: mine.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "key"), [("--max-minutes", "max_minutes"), ("--epochs", "train.epochs")])
def test_a_setting_written_as_an_option_is_explained(option: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "rows.jsonl", option, "4"]) == 2
    assert f"write {key}=VALUE" in capsys.readouterr().err


def test_a_table_without_a_header_line_is_asked_for_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text(
        "show me flights from boston to denver,flight\nwhat does the code h mean,abbreviation\n"
    )
    assert main(["init", "rows.csv"]) == 2
    assert "is there no header line?" in capsys.readouterr().err


def test_the_starting_recipe_keeps_what_was_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{i};{'ab'[i >= 500]};Wake me at {i}!\n" for i in range(1000))
    Path("home.csv").write_text("no;scenario;said\n" + rows)
    assert main(["init", "home.csv", "data.text=said", "data.label=scenario", "train.epochs=2", "max_minutes=5"]) == 0
    recipe = load_recipe("recipe.yaml")
    assert (recipe.data.text, recipe.data.label, recipe.train.epochs, recipe.max_minutes) == ("said", "scenario", 2, 5)
    assert main(["init", "home.csv", "data.text=sayd", "-o", "other.yaml"]) == 2
    assert "did you mean 'said'?" in capsys.readouterr().err and not Path("other.yaml").exists()


def test_the_starting_recipe_shows_templates_with_the_columns_of_the_file(here: Path) -> None:
    Path("flights.csv").write_text(
        "request,intent\n" + "".join(f"flight {i} please,{'ab'[i % 2]}\n" for i in range(20))
    )
    assert main(["init", "flights.csv", "--out", "new.yaml"]) == 0
    text = Path("new.yaml").read_text()
    assert '# input: "{request}"' in text and '# output: "{intent}"' in text


def test_a_command_that_is_asked_to_end_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(**_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("tuneloop.cli.main.app", work)
    assert main(["run", "rows.jsonl"]) == 143
    assert "Ended (SIGTERM)" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_unknown_command_offers_the_nearest(fails: Fails) -> None:
    assert "evaluate" in fails("evaluat")


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("schema", "more"), ("run", "good.jsonl", "--nonsense"), ("prepare", "good.jsonl", "--show", "x")],
)
def test_usage_errors(fails: Fails, arguments: tuple[str, ...]) -> None:
    assert f"tuneloop {arguments[0]} --help" in fails(*arguments)


# --- data -----------------------------------------------------------------------------------------------


def test_missing_data_file(fails: Fails) -> None:
    assert "none.jsonl" in fails("run", "none.jsonl")
    assert "none.jsonl" in fails("prepare", "none.jsonl")
    assert "none.jsonl" in fails("init", "none.jsonl")


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "e.json", "e.parquet"])
def test_empty_file(fails: Fails, here: Path, name: str) -> None:
    (here / name).write_bytes(b"")
    assert name in fails("prepare", name)


def test_folder_without_data(fails: Fails, here: Path) -> None:
    (here / "empty").mkdir()
    assert "empty" in fails("prepare", "empty")


def test_no_valid_rows(fails: Fails, here: Path, tiny_llama: Path) -> None:
    (here / "bad.jsonl").write_text("not json\n" * 5)
    assert "bad.jsonl" in fails("prepare", "bad.jsonl", "--model", str(tiny_llama))


def test_too_many_rejects_name_the_setting_that_allows_them(fails: Fails, here: Path, tiny_llama: Path) -> None:
    good, bad = rows(40), [{"text": "", "label": "late"}] * 15
    write_rows(here / "mixed.jsonl", [*good, *bad])
    message = fails("prepare", "mixed.jsonl", "--model", str(tiny_llama), "-o", "set")
    assert "allow_rejects=" in message
    assert (here / "set" / "rejects.jsonl").read_text().count("\n") == 15  # the reasons are there to look at


def test_unknown_label(fails: Fails, here: Path, tiny_llama: Path) -> None:
    message = fails("prepare", "good.jsonl", "labels=[late, refund]", "--model", str(tiny_llama))
    assert "praise" in message or "unknown_label" in message


def test_a_column_that_is_not_there(fails: Fails, tiny_llama: Path) -> None:
    assert "subject" in fails("prepare", "good.jsonl", "input={subject}", "output={label}", "-m", str(tiny_llama))


def test_recipe_without_data(fails: Fails, here: Path) -> None:
    (here / "r.yaml").write_text("name: a\n")
    assert "data.sources" in fails("run", "r.yaml", "output_dir=o")


# --- models and results -----------------------------------------------------------------------------------


def test_model_not_found(fails: Fails) -> None:
    message = fails("prepare", "good.jsonl", "--model", "lama-3.1-8b")
    assert "did you mean llama-3.1-8b" in message


def test_folder_that_is_no_model(fails: Fails, here: Path) -> None:
    (here / "m").mkdir()
    assert "config.json" in fails("train", "good.jsonl", "model=m")


def test_damaged_weights(fails: Fails, here: Path, tiny_llama: Path) -> None:
    (here / "m").mkdir()
    for file in tiny_llama.iterdir():
        if file.suffix == ".safetensors":
            (here / "m" / file.name).write_bytes(file.read_bytes()[:5000])
        else:
            (here / "m" / file.name).write_bytes(file.read_bytes())
    assert "model.safetensors" in fails("plan", "good.jsonl", "model=m")


def test_evaluate_without_rows_or_run(fails: Fails, here: Path) -> None:
    assert "--dataset" in fails("evaluate", "smollm2-135m")
    assert "--split" in fails("evaluate", "smollm2-135m", "--split", "tset")
    (here / "part").mkdir()
    (here / "part" / "config.yaml").write_text("version: 1\n")
    assert "not finished" in fails("evaluate", "part")


def test_compare_and_report_need_what_they_read(fails: Fails, here: Path) -> None:
    assert "eval.json" in fails("compare", "a", "b")
    fails("compare", "a")
    fails("compare", "nowhere")


def test_init_never_overwrites(fails: Fails, here: Path) -> None:
    (here / "recipe.yaml").write_text("mine")
    assert "--out" in fails("init", "good.jsonl")
    assert (here / "recipe.yaml").read_text() == "mine"


# --- the disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["file/inside", "/proc/nothing/run", "/dev/null/run"])
def test_output_that_cannot_be_written(fails: Fails, here: Path, path: str, tiny_llama: Path) -> None:
    (here / "file").write_text("x")
    settings = ("good.jsonl", f"model={tiny_llama}", "track.report_to=none")
    assert path.rpartition("/")[0] in fails("run", *settings, f"output_dir={path}")
    assert path.rpartition("/")[0] in fails("prepare", *settings, "--out", path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("a file system can't be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_full_disk_and_going_on_when_there_is_room(
    cli_process: Any, tmp_path: Path, small_disk: Path, tiny_llama: Path
) -> None:
    write_rows(tmp_path / "good.jsonl", rows())
    command = ["train", "good.jsonl", f"model={tiny_llama}", "epochs=1", f"output_dir={small_disk / 'run'}"]
    done = cli_process(*command)
    check_failure(done.returncode, done.stdout, done.stderr)
    assert "No space left" in done.stderr and "free" in done.stderr
    assert not list(small_disk.rglob("*.tmp")) and not (small_disk / "run" / "run.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = cli_process(*command)
    assert done.returncode == 0, done.stderr
    assert (small_disk / "run" / "run.json").is_file()


@pytest.mark.nightly
@pytest.mark.slow
def test_file_size_limit(cli_process: Any, tmp_path: Path, tiny_llama: Path) -> None:
    """What a quota does: a checkpoint can't be written, the data set before it stays whole."""
    write_rows(tmp_path / "good.jsonl", rows())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    command = ["train", "good.jsonl", f"model={tiny_llama}", "epochs=1", "output_dir=run"]
    done = cli_process(*command, preexec_fn=limit)
    check_failure(done.returncode, done.stdout, done.stderr)
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "run" / "run.json").exists()
    done = cli_process(*command)
    assert done.returncode == 0, done.stderr
    assert "already done" in done.stderr  # the data set


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["schema"], ["doctor"], ["schema", "--keys"]])
def test_output_to_a_full_device(arguments: list[str], cli_environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "tuneloop", *arguments], stdout=full, stderr=subprocess.PIPE,
                              text=True, env=cli_environment)  # fmt: skip
    check_failure(done.returncode, "", done.stderr)
    assert "No space left" in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_leaves_is_no_error(cli_environment: dict[str, str]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "tuneloop", "schema"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=cli_environment)  # fmt: skip
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


# --- what else can happen -----------------------------------------------------------------------------------


def test_debug_shows_the_traceback(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nope.yaml", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "the same command does the rest"),
        (MemoryError(), 2, "train.micro_batch_tokens"),
        (RuntimeError("DefaultCPUAllocator: out of memory"), 2, "train.micro_batch_tokens"),
        (RuntimeError("something\nelse"), 2, "--debug"),
        (OSError(28, "No space left on device", "x"), 2, "continues"),
    ],
)
def test_other_errors_are_short_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, text: str
) -> None:
    import tuneloop.core.doctor

    def fail() -> None:
        raise error

    monkeypatch.setattr(tuneloop.core.doctor, "examine", fail)
    assert main(["doctor"]) == status
    err = capsys.readouterr().err
    assert text in err and "Traceback" not in err and len(err.strip().splitlines()) <= 3


def test_a_model_in_the_place_of_a_data_set_is_said_how_to_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3.1-8b", "--tokens", "1e6"]) == 2
    assert "--model llama-3.1-8b" in capsys.readouterr().err


def test_a_word_too_many_names_the_option_that_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["costs", "serve"]) == 2
    assert "tuneloop costs --folder serve" in capsys.readouterr().err


def test_an_option_without_its_value_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "serve", "--ask"]) == 2
    assert "tuneloop monitor --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "setting"), [("evaluate", "evaluate.limit"), ("train", "data.limit"), ("run", "data.limit")]
)
def test_an_option_that_is_a_setting_is_named_from_the_command_s_own_section(
    capsys: pytest.CaptureFixture[str], command: str, setting: str
) -> None:
    assert main([command, "x", "--limit", "5"]) == 2
    assert f"write {setting}=VALUE" in capsys.readouterr().err
