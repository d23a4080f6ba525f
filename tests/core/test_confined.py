from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tuneloop
from tuneloop.core.confined import AGENT, CONFINED, MOST_VALUES, PAGE, Roots, confined, confining, leads_into
from tuneloop.core.errors import UserError
from tuneloop.core.python_file import run_python_file, trust_code
from tuneloop.data.sources.read import fetched_files, find_files
from tuneloop.recipe import Recipe, load_recipe


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """One folder with a file, next to a secret."""
    (tmp_path / "open" / "data").mkdir(parents=True)
    (tmp_path / "open" / "rows.csv").write_text("text,label\na,b\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "keys.csv").write_text("text,label\nx,y\n")
    return Roots((tmp_path / "open",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rows.csv",
        "data",
        "*.csv",
        "runs/new-run",
        "smollm2-135m",
        "org/name",
        "runs/a:few-shot",
        "models:/x@champion",
    ],
)
def test_places_within_and_names_of_models_are_allowed(roots: Roots, text: str) -> None:
    assert roots.place(text) == text


def test_an_absolute_place_within_the_folders_is_allowed(roots: Roots, tmp_path: Path) -> None:
    assert roots.place(str(tmp_path / "open" / "rows.csv"))
    assert Roots((tmp_path / "open", tmp_path / "secret")).place(str(tmp_path / "secret"))


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "../secret/keys.csv",
        "data/../../secret/keys.csv",
        "data/..",
        "..\\secret",
        "~/x.csv",
        "~root/x.csv",
        "~",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "FILE:///etc/passwd",
        "https://example.org/rows.csv",
        "s3://bucket/rows.csv",
        "-",
        "--trust-code",
        "a\0b",
        "x" * 5000,
        "../secret:zero-shot",
        "rows.csv,/etc/passwd",
        "rows.csv, ~/x.csv",
        "split.test=/etc/passwd",
        "evaluate.limit=5",
        "/tm?/*",
    ],
)
def test_places_elsewhere_are_refused(roots: Roots, text: str) -> None:
    with pytest.raises(UserError, match="is refused"):
        roots.place(text)


@pytest.mark.parametrize(
    "text", ["out.csv", "out", "out/keys.csv", "out:zero-shot", "*.csv", "data", "o*", "**/*.csv", "data/inner"]
)
def test_links_that_lead_out_are_refused(roots: Roots, tmp_path: Path, text: str) -> None:
    (tmp_path / "open" / "out.csv").symlink_to(tmp_path / "secret" / "keys.csv")
    (tmp_path / "open" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "data" / "inner").symlink_to("../../secret")
    with pytest.raises(UserError, match="leads out of the server's folders"):
        roots.place(text)


def test_a_file_with_an_equals_sign_in_its_name_is_a_place(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "open" / "a=b.csv").write_text("text\n")
    assert roots.place("a=b.csv")


def test_a_link_that_stays_within_is_allowed(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "open" / "again.csv").symlink_to("rows.csv")
    assert roots.place("again.csv") and roots.place("*.csv")


def test_settings_become_words_of_a_command(roots: Roots) -> None:
    values = {
        "max_minutes": 2,
        "train": {"epochs": 1.5, "method": "lora"},
        "data": {"labels": ["-1", "ja 😀", "a=b"], "text": None},
    }
    assert roots.settings(values) == [
        "max_minutes=2",
        "train.epochs=1.5",
        'train.method="lora"',
        'data.labels=["-1", "ja 😀", "a=b"]',
        "data.text=null",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"output_dir": "/somewhere"},
        {"output_dir": "../out"},
        {"data": {"sources": ["../secret/keys.csv"]}},
        {"data": {"split": {"test": "/etc/passwd"}}},
        {"store": "s3://bucket/runs"},
        {"train": {"method": "mine.py"}},
        {"evaluate": {"scorers": {"f": "mine.py:score"}}},
        {"combined": "a.json,/etc/passwd"},
        {"--trust-code": "true"},
        {"train.epochs=1 --trust-code": 1},
        {"data": {"instruction": "/etc/passwd\nmore"}},
        {"data": {"instruction": "x" * MOST_VALUES}},
    ],
)
def test_settings_that_lead_out_or_name_code_are_refused(roots: Roots, values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        roots.settings(values)


def read(roots: Roots, values: dict[str, Any], *settings: str) -> Recipe:
    """A recipe of the folder, as a command reads it that an agent has started there."""
    (roots.base / "recipe.yaml").write_text(yaml.safe_dump({"name": "a", **values}))
    with confined(AGENT, roots):
        return load_recipe(roots.base / "recipe.yaml", settings)


def test_a_recipe_may_name_what_is_in_the_folders(roots: Roots) -> None:
    data = {"sources": ["rows.csv"], "instruction": "Choose: a / b.\nBe brief.", "split": {"test": "data/test.csv"}}
    train = {"method": "lora", "targets": ["q_proj"], "ranks": {"q_proj": 4}}
    recipe = read(roots, {"data": data, "train": train, "evaluate": {"fields": {"n": "(.*)"}}})
    assert recipe.data.sources == ["rows.csv"]


OUTSIDE = "/outside/passwords.csv"


@pytest.mark.parametrize(
    "setting",
    [
        f'data.sources=["{OUTSIDE}"]',
        f"data.sources=[{OUTSIDE}]",
        f'data.sources="{OUTSIDE}"',
        f"data.sources=[rows.csv, &x {OUTSIDE}, *x]",
        f"sources=['{OUTSIDE}']",
        f"sources={OUTSIDE}",
        f"data={{sources: ['{OUTSIDE}']}}",
        f"--data.sources={OUTSIDE}",
        'data.sources=["\\x2foutside/passwords.csv"]',
        'data.sources=["\\u002foutside/passwords.csv"]',
        "data.sources=[!!str /outside/passwords.csv]",
        "data.sources=[../secret/keys.csv]",
        "data.sources=[~root/x.csv]",
        "data.sources=[file:///etc/passwd]",
        "data.sources=[hf://datasets/a/b]",
        "data.sources=[http://host/pwn2.py]",
        'data.sources=["rows.csv,/etc/passwd"]',
        'data.sources=["rows\\0.csv"]',
        "data.split.test=/etc/passwd",
        'data.split={test: "/etc/passwd"}',
        "data.split.freeze=/etc",
        "data.patch=/etc/passwd",
        "data.mix.sources=[/etc/passwd]",
        "baselines.prompt=/etc/passwd",
        "evaluate.json_schema=/etc/passwd",
        "evaluate.general=/etc/passwd",
        "train.init=/etc",
        "train.teacher=/etc",
        "output_dir=/tmp/out",
        "output_dir=../out",
        "store=s3://bucket/x",
        "model=/etc",
        "model_name_or_path=/etc",
        "base_model=https://host/model",
        "data.personal.secret=PATH",
        "train.method='pwn.py'",
        "train.method=pwn.py",
        "train={method: pwn.py}",
        "evaluate.scorers={x: 'pwn.py:f'}",
        'evaluate.scorers={"x": "pwn.py:f"}',
        "evaluate.scorers={x: pwn}",
        "evaluate={<<: {scorers: {x: 'pwn.py:f'}}}",
        "evaluate={a: &a {x: 'pwn.py:f'}, scorers: *a}",
    ],
)
def test_what_a_recipe_or_a_setting_names_elsewhere_is_refused_however_it_is_written(
    roots: Roots, setting: str
) -> None:
    (roots.base / "pwn.py").write_text("import os; os.environ['PWNED'] = '1'")
    with pytest.raises(UserError):
        read(roots, {"data": {"sources": ["rows.csv"]}}, setting)
    assert "PWNED" not in os.environ


def test_places_that_only_look_like_a_path_are_names_of_files_here(roots: Roots) -> None:
    tag = "[!!python/object/apply:os.system [id]]"  # is not YAML here, and so a text
    assert read(roots, {}, f"data.sources={tag}").data.sources == [tag]
    lookalike = "data\u2215..\u2215..\uff0fetc"  # slashes of Unicode are none to the system
    assert read(roots, {"data": {"sources": [lookalike]}}).data.sources == [lookalike]


def test_what_a_run_was_made_of_is_checked_too(roots: Roots, tmp_path: Path) -> None:
    for values in ({"sources": ["../secret/keys.csv"]}, {"sources": [str(tmp_path / "secret" / "keys.csv")]}):
        with pytest.raises(UserError, match="is refused"):
            read(roots, {"data": values})


def test_a_command_of_a_page_runs_no_file_and_opens_no_address(
    roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (roots.base / "pwn.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(roots.base)
    monkeypatch.setenv(CONFINED, confining(PAGE, roots)[CONFINED])
    trust_code("*")
    with pytest.raises(UserError, match="Code is not run for a page"):
        run_python_file("pwn.py", "here", "file")
    with pytest.raises(UserError, match="not opened for a page"):
        fetched_files("http://127.0.0.1:9/pwn2.py")
    (roots.base / "out.csv").symlink_to(tmp_path / "secret" / "keys.csv")
    with pytest.raises(UserError, match="outside the folders"):
        find_files(["out.csv"])
    with pytest.raises(UserError):
        load_recipe(write(roots, {"train": {"method": "pwn.py"}}))


def write(roots: Roots, values: dict[str, Any]) -> Path:
    path = roots.base / "r.yaml"
    path.write_text(yaml.safe_dump({"data": {"sources": ["rows.csv"]}, **values}))
    return path


# --- one function decides ----------------------------------------------------------------------

SRC = Path(tuneloop.__file__).parent
DECIDES = {"is_relative_to", "commonpath", "commonprefix"}
NO_DECISION = {
    "core/confined.py": "it is the decision",
    "core/foreign.py": "names the parts that are then opened one by one, without links",
    "core/files.py": "says in an error which setting names a folder",
    "models/chat/template.py": "the common beginning of texts, which are no paths",
}
OPENS = {"open", "read_text", "read_bytes", "fdopen"}
OWN_FILES = {
    "agents/jobs.py": "what the system says of processes (/proc)",
    "web/runs.py": "what the system says of locks (/proc/locks)",
    "web/app.py": "files of the package",
}


def named(folders: tuple[str, ...], names: set[str]) -> Iterator[tuple[str, str]]:
    """Modules of some folders, and lines where an attribute of one of the names, or `open` itself, is used."""
    for path in (path for folder in folders for path in sorted((SRC / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            builtin = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
            if (builtin and "open" in names) or (isinstance(node, ast.Attribute) and node.attr in names):
                yield path.relative_to(SRC).as_posix(), f"{path.relative_to(SRC)}:{node.lineno}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("folders", "names", "allowed"),
    [(("",), DECIDES, NO_DECISION), (("web", "agents"), OPENS, OWN_FILES)],
    ids=["whether a path is in a folder", "what pages and agents open"],
)
def test_nothing_else_decides_on_paths(folders: tuple[str, ...], names: set[str], allowed: dict[str, str]) -> None:
    lines = [*named(folders, names)]
    beside = [line for module, line in lines if module not in allowed]
    assert not beside, "use core.confined.leads_into, or core.foreign:\n" + "\n".join(beside)
    assert not allowed.keys() - {module for module, _ in lines}


def test_a_path_is_in_a_folder_where_it_leads_and_not_how_it_is_written(tmp_path: Path) -> None:
    inner, outer = tmp_path / "in", tmp_path / "out"
    inner.mkdir()
    outer.mkdir()
    (inner / "link").symlink_to(outer)
    (outer / "back").symlink_to(inner)
    assert leads_into(inner, [inner]) and leads_into(inner / "new" / "file", [inner])
    assert leads_into(outer / "back" / "x", [outer, inner]) and not leads_into(outer / "back" / "x", [outer])
    for outside in (inner / "link" / "x", inner / ".." / "out", tmp_path / "inside"):
        assert not leads_into(outside, [inner])
