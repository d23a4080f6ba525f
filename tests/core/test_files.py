"""Files are whole or not there, settings are strict, and a folder belongs to one process."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.core.files import (
    build_config,
    config_keys,
    content_hash,
    inside,
    lock_folder,
    plain,
    plain_cell,
    read_json,
    read_jsonl,
    read_yaml,
    sha256_file,
    try_lock,
    unquoted_cell,
    user_errors_of_the_disk,
    wait_for_lock,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
    write_yaml,
)
from tuneloop.recipe import ALIASES, Recipe, load_recipe, make_recipe

# --- configuration -------------------------------------------------------------------------------


def test_defaults_then_recipe_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {epochs: 5, rank: 4}\nmodel: here\n")
    recipe = load_recipe(path, ["train.epochs=2"])
    assert (recipe.train.epochs, recipe.train.rank, recipe.model, recipe.seed) == (2.0, 4, "here", 0)


@pytest.mark.parametrize(
    ("text", "value"), [("5e-4", 5e-4), ("5E-4", 5e-4), ("1e-3", 1e-3), ("0.002", 0.002), ("1.5e-05", 1.5e-5)]
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert make_recipe({}, [f"lr={text}"]).train.learning_rate == value


@given(st.floats(min_value=1e-12, max_value=9.9))
def test_any_float_comes_through_an_override(value: float) -> None:
    assert make_recipe({}, [f"train.learning_rate={value!r}"]).train.learning_rate == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_minutes=null", "train.max_minutes", None),
        ("baselines.zero_shot=false", "baselines.zero_shot", False),
        ("baselines.few_shot=3", "baselines.few_shot", 3),
        ("train.targets=q_proj,v_proj", "train.targets", ["q_proj", "v_proj"]),
        ("train.targets=[q_proj, v_proj]", "train.targets", ["q_proj", "v_proj"]),
        ("data.sources=a.jsonl", "data.sources", ["a.jsonl"]),
        ("data.sources=[a.jsonl, b.csv]", "data.sources", ["a.jsonl", "b.csv"]),
        ("data.output={answer}", "data.output", "{answer}"),
        ("data.input=Text: {text}", "data.input", "Text: {text}"),
        ("data.input='{text}'", "data.input", "{text}"),
        ('data.input="a\\nb"', "data.input", "a\nb"),
        ("data.instruction=yes", "data.instruction", "yes"),
        ("data.text=2024", "data.text", "2024"),
        ("data.label=null", "data.label", None),
        ("data.label=", "data.label", None),
        ("--train.rank=2", "train.rank", 2),
        ("output_dir=runs/e1", "output_dir", "runs/e1"),
        ("model=hf=1", "model", "hf=1"),
    ],
)
def test_overrides_of_all_kinds(override: str, key: str, value: Any) -> None:
    found: Any = make_recipe({}, [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_every_alias_sets_its_key(alias: str) -> None:
    values = {"model": "here", "data.sources": ["x.jsonl"], "train.schedule": "cosine", "track.report_to": ["none"],
              "data.max_length": 99}  # fmt: skip
    key = ALIASES[alias]
    value = values.get(key, 0.5 if key in ("train.dropout", "train.warmup", "data.allow_rejects") else 7)
    found: Any = make_recipe({alias: value if key != "train.learning_rate" else 0.7})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == (value if key != "train.learning_rate" else 0.7)


def test_tags_are_a_list_or_words_with_commas() -> None:
    assert make_recipe({"track.tags": "first, week 48"}) == make_recipe({"track": {"tags": ["first", "week 48"]}})


def test_nested_and_dotted_keys_mean_the_same() -> None:
    nested = make_recipe({"data": {"split": {"val": 0.2}}, "train": {"epochs": 1}})
    assert nested == make_recipe({"data.split.val": 0.2, "train.epochs": 1})
    assert nested == make_recipe({"epochs": 1}, ["data.split={val: 0.2}"])


def test_an_override_of_one_key_keeps_its_neighbours() -> None:
    recipe = make_recipe({"data": {"split": {"val": 0.2, "test": 0.3}}}, ["data.split.val=0.1"])
    assert (recipe.data.split.val, recipe.data.split.test) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.epoch", "train.epochs"),
        ("trian.epochs", "train"),
        ("modle", "model"),
        ("rank", "train.rank"),
        ("data.split.tset", "data.split.test"),
        ("evaluate.max_tokens", "evaluate.max_new_tokens"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(UserError, match="Unknown key") as caught:
        make_recipe({}, [f"{key}=1"])
    assert nearest in caught.value.next_step


@pytest.mark.parametrize(
    "override",
    ["train.epochs=many", "train.epochs=-1", "train.schedule=stepwise", "seed=1.5", "data.split.val=0.7", "name=a/b",
     "train=3", "train.rank=", "evaluate.fields=5", "version=2"],
)  # fmt: skip
def test_bad_values_name_their_key(override: str) -> None:
    with pytest.raises(UserError) as caught:
        make_recipe({}, [override])
    assert override.split("=")[0].split(".")[-1] in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize("override", ["epochs", "=3", "", "model.size=3", "seed.more.deeply=1"])
def test_what_is_no_setting_is_refused(override: str) -> None:
    with pytest.raises(UserError) as caught:
        make_recipe({}, ["seed=1", override])
    assert caught.value.next_step


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
        max_size=3,
    )
)
def test_whatever_a_recipe_holds_it_parses_or_is_refused_with_a_next_step(values: dict[str, Any]) -> None:
    try:
        assert isinstance(make_recipe(values), Recipe)
    except UserError as error:
        assert error.what and error.next_step


@given(st.text(max_size=20))
def test_whatever_a_value_holds_it_is_text_or_refused(text: str) -> None:
    try:
        recipe = make_recipe({}, [f"data.instruction={text}"])
    except UserError as error:
        assert error.next_step
    else:
        assert recipe.data.instruction is None or isinstance(recipe.data.instruction, str)


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = make_recipe({"data": {"sources": ["a.jsonl"], "output": "Queue: {queue}\n{summary}"}}, ["lr=5e-4"])
    write_yaml(tmp_path / "config.yaml", recipe)
    assert load_recipe(tmp_path / "config.yaml") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: b: c\n", "Not valid YAML"), ("- 1\n- 2\n", "mapping"), ("", "mapping"), ("\x00\x01", "Not valid YAML")],
)
def test_a_broken_recipe_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert str(path) in caught.value.where


def test_a_missing_recipe_offers_one_of_like_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("{}")
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "recipes.yaml")
    assert "did you mean" in caught.value.next_step and "recipe.yaml" in caught.value.next_step


def test_config_keys_lists_sections_and_their_keys() -> None:
    keys = config_keys(Recipe)
    assert {"model", "train", "train.epochs", "data.split.stratify"} <= set(keys)
    with pytest.raises(UserError):
        build_config(Recipe, {"train": {"epochs": 1, "nothing": 2}})


# --- writing and reading ---------------------------------------------------------------------------


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left") as caught:
        write_json(path, {"a": 2})
    assert "free some space" in caught.value.next_step
    assert read_json(path) == {"a": 1}
    assert os.listdir(path.parent) == ["file.json"]


def test_an_interrupted_write_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "file", "x")
    assert os.listdir(tmp_path) == []


def test_written_files_have_the_usual_permissions_and_those_in_a_private_folder_are_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    write_text(tmp_path / "new" / "ours", "x")
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")] == [0o700, 0o600]
    tmp_path.chmod(0o755)
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE(os.stat(tmp_path / "ours").st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


def test_a_folder_in_the_way_or_a_file_as_folder_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "inside", tmp_path / "folder", Path("/proc/nothing/here")):
        with pytest.raises(UserError) as caught:
            write_bytes(path, b"x")
        assert caught.value.next_step


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=4))
def test_json_lines_read_back_as_written(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    write_jsonl(path, records)
    assert read_jsonl(path) == records
    assert path.read_bytes().count(b"\n") == len(records)


@given(JSON)
def test_the_content_hash_does_not_depend_on_key_order(value: Any) -> None:
    backwards = json.loads(json.dumps(value), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert content_hash(value) == content_hash(backwards)


def test_different_content_has_a_different_hash() -> None:
    assert len({content_hash(v) for v in (1, "1", [1], {"1": 1}, None, [], {}, 1.5, "")}) == 9


def test_plain_holds_no_nan_and_knows_records() -> None:
    @dataclass(frozen=True)
    class Pair:
        a: float
        b: Path

    value = {"x": [math.nan, math.inf, 1.0], 3: Pair(-math.inf, Path("p")), "r": Recipe()}
    found = plain(value)
    assert found["x"] == [None, None, 1.0]
    assert found["3"] == {"a": None, "b": "p"}
    assert found["r"]["train"]["rank"] == 16
    json.dumps(found, allow_nan=False)


def test_damaged_files_name_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match="Not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError) as caught:
        read_jsonl(tmp_path / "b.jsonl")
    assert caught.value.where.endswith("b.jsonl:2")
    for read, name in ((read_json, "none.json"), (read_jsonl, "none.jsonl")):
        with pytest.raises(UserError, match="No such file"):
            read(tmp_path / name)


# --- locks -----------------------------------------------------------------------------------------


def _hold(folder: str, ready: Any, stop: Any) -> None:
    with lock_folder(folder):
        ready.set()
        stop.wait(30)


def test_a_folder_is_one_processs_and_is_let_go_when_it_dies(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), ready, stop))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(UserError, match=f"pid {process.pid}") as caught, lock_folder(tmp_path):
            pass
        assert caught.value.where == str(tmp_path)
        with pytest.raises(UserError) as caught, lock_folder(tmp_path, instead="--out FILE"):
            pass
        assert caught.value.next_step.endswith("choose another folder: --out FILE")
    finally:
        process.kill()
        process.join()
    with lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):  # and it can be taken again
        pass


def test_a_process_that_may_wait_waits_says_for_whom_and_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), ready, stop))
    process.start()
    told: list[str] = []

    def waiting(holder: str) -> None:
        told.append(holder)
        stop.set()  # now the other process lets go

    assert ready.wait(30)
    with lock_folder(tmp_path, waiting=waiting):
        assert told == [f"pid {process.pid}"]
    process.join()


def test_a_folder_made_for_work_that_fails_at_once_goes_again(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with pytest.raises(RuntimeError), lock_folder(folder, minor=["config.yaml"]):
        (folder / "config.yaml").touch()
        raise RuntimeError
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RuntimeError), lock_folder(folder):
        shutil.rmtree(folder)  # the work cleans up after itself
        raise RuntimeError
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RuntimeError), lock_folder(folder, minor=["config.yaml"]):
        (folder / "results.json").touch()
        raise RuntimeError
    with pytest.raises(RuntimeError), lock_folder(folder.parent):
        raise RuntimeError
    assert (folder / "results.json").exists(), "what was there before, or is worth something, stays"


@pytest.mark.parametrize(
    "raw",
    ["1" * 6000, "[" * 4000 + "]" * 4000, "inf", "nan", "1" * 600],
    ids=["digits", "nested", "inf", "nan", "large"],
)
def test_odd_values_are_refused_in_words(raw: str, tmp_path: Path) -> None:
    from tuneloop.recipe import Recipe

    with pytest.raises(UserError) as error:
        build_config(Recipe, {}, [f"train.epochs={raw}"])
    assert "train.epochs" in str(error.value) and len(str(error.value)) < 400
    if raw not in ("inf", "nan"):
        (tmp_path / "r.yaml").write_text(f"seed: {raw}\n")
        with pytest.raises(UserError) as error:
            build_config(Recipe, read_yaml(tmp_path / "r.yaml"), where="r.yaml")
        assert len(str(error.value)) < 400


def test_a_user_without_a_home_has_a_place_for_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.core import files

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files.Path, "home", staticmethod(nobody))
    assert files.home().parent.is_dir()


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1 for this", "-x", "@SUM(A1)", "\tx", "\r=x", " =1", "'=1", "''-x", "=cmd|' /C calc'!A0", "-1-1", "plain",
     "'quoted'", "", "-5", "+1e-3", "a=b", "'-5", "\n=1"],
)  # fmt: skip
def test_a_cell_is_no_formula_and_comes_back(text: str) -> None:
    cell = plain_cell(text)
    assert unquoted_cell(cell) == text
    assert not cell.strip().startswith(("=", "+", "-", "@")) or cell in ("-5", "+1e-3")
    assert not cell.startswith(("\t", "\r"))


def test_numbers_in_cells_stay_numbers() -> None:
    assert [plain_cell(value) for value in (-5, -0.5, None, True)] == [-5, -0.5, None, True]


def test_a_manifest_names_files_within_its_folder_only(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    for name in ("a.jsonl", "a/b.jsonl", "a/../b.jsonl", "..a", "../folder/a"):
        assert inside(folder, name) == folder / name
    for name in ("../outside/x", "..", ".", "", str(outside), "/etc/passwd", "link/x", "x\0", "a/../../b"):
        with pytest.raises(UserError, match="outside its folder"):
            inside(folder, name)


def test_a_refusal_names_the_option_that_moves_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    for path, option in (("cache/models/x", "TUNELOOP_CACHE=FOLDER"), ("runs/x", "output_dir=FOLDER")):
        with pytest.raises(UserError) as caught, user_errors_of_the_disk(tmp_path / path):
            raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / path))
        assert option in caught.value.next_step


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes as files here")
def test_a_pipe_has_no_hash_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        sha256_file(tmp_path / "pipe")


@pytest.fixture
def two(tmp_path):
    """Two descriptors of a file, as two processes have them."""
    descriptors = [os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_locked_file_is_refused_until_it_is_closed(tmp_path, two):
    holder = os.open(tmp_path / "file", os.O_RDWR)
    assert try_lock(holder)
    assert not try_lock(two[0])
    os.close(holder)
    assert try_lock(two[0])


def test_waiting_ends_when_the_holder_lets_go(tmp_path, two):
    holder = os.open(tmp_path / "file", os.O_RDWR)
    assert try_lock(holder)
    threading.Timer(0.2, os.close, [holder]).start()
    started = time.monotonic()
    wait_for_lock(two[0])
    assert time.monotonic() - started > 0.1


def test_a_killed_process_lets_go(tmp_path, two):
    code = "import os, sys, time; from tuneloop.core.files import try_lock; print(try_lock(os.open(sys.argv[1], 2)), flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"True\n"
    assert not try_lock(two[0])
    process.kill()
    process.wait()
    assert try_lock(two[0])
