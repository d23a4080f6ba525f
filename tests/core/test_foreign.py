"""What someone else has written is read within limits, and from plain files alone."""

from __future__ import annotations

import itertools
import os
import zipfile
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_yaml
from tuneloop.core.foreign import (
    LIMITS,
    BeyondLimits,
    appended,
    load_safetensors,
    opened,
    opened_zip,
    parse_json,
    parse_yaml,
)

LEVELS = "abcdefghi"


def bomb(first: str, form: str) -> str:
    """Each line holds the one before ten times."""
    pairs = itertools.pairwise(LEVELS)
    lines = (f"{name}: &{name} {form % ', '.join([f'*{before}'] * 10)}\n" for before, name in pairs)
    return f"a: &a {first}\n" + "".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb("[x, x, x, x, x, x, x, x, x, x]", "[%s]"),
        bomb("{k: v}", "{<<: [%s]}"),
        "a: &a [*a]",
        "[" * 200 + "]" * 200,
        "- " * 200 + "x",
        "a: " + "9" * 400,
        "a: " + ":".join(["59"] * 400),
        "a: &a x\nb: [" + "*a, " * 2000 + "]",
        "x" * (LIMITS["yaml"].bytes + 1),
    ],
)
def test_yaml_beyond_the_limits_is_refused_before_it_is_built(text: str) -> None:
    with pytest.raises(BeyondLimits):
        parse_yaml(text)


def test_yaml_with_a_few_aliases_is_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}


def test_an_alias_bomb_in_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(bomb("[x, x, x, x]", "[%s]"))
    assert (tmp_path / "config.yaml").stat().st_size < 800
    with pytest.raises(UserError, match="aliases expanded"):
        read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_too_deep_or_with_endless_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "eval.json")
    with pytest.raises(UserError, match="no plain file"):
        read_json(tmp_path / "eval.json")


def test_below_a_folder_no_link_is_followed(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (outside / "data").mkdir(parents=True)
    run.mkdir()
    (outside / "data" / "x").write_text("secret")
    (run / "file").symlink_to(outside / "data" / "x")
    (run / "folder").symlink_to(outside / "data")
    (run / "twice").hardlink_to(outside / "data" / "x")
    for name in ("file", "folder/x", "../outside/data/x", str(outside / "data" / "x")):
        with pytest.raises((OSError, ValueError)):
            opened(run / name, below=run)
    for name in ("file", "twice"):
        with pytest.raises(OSError, match=r"link|second name"):
            appended(run / name, below=run)
    assert (outside / "data" / "x").read_text() == "secret"


def test_a_zip_that_is_packed_too_densely_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * 50_000_000)
    with pytest.raises(BeyondLimits), opened_zip(tmp_path / "a.zip"):
        pass


def test_a_list_of_tensors_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((LIMITS["safetensors"].bytes + 1).to_bytes(8, "little") + b"{")
    with pytest.raises(BeyondLimits, match="list of tensors"):
        load_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", [b'{"a": 1}', '{"a": 1}'.encode("utf-8-sig"), '{"a": 1}'.encode("utf-16"), '{"a": 1}'])
def test_json_is_read_in_the_encodings_that_it_may_have(text: str | bytes) -> None:
    assert parse_json(text) == {"a": 1}
