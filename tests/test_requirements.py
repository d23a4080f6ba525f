"""What is installed: lists with hashes that uv.lock says, from which alone everything installs, and the check of advisories."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from places import ROOT

FOLDER = ROOT / "requirements"
LISTS = sorted(FOLDER.glob("*.txt"))
LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
TODAY = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00Z")


def uv() -> str:
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if found is None:
        pytest.skip("needs uv, which the tests' requirements bring")
    return found


def test_the_lists_are_what_the_lock_says_and_the_lock_what_the_project_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(uv()).parent), prepend=":")
    done = subprocess.run([sys.executable, str(FOLDER / "export.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: make lock"
    checked = subprocess.run(["uv", "lock", "--check", "--offline"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, f"{checked.stderr}: make lock"


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_each_line_of_a_list_is_a_version_of_the_lock_with_its_hashes_and_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find" not in text
    versions = {(package["name"], package.get("version")) for package in LOCK["package"]}
    files = {
        file["hash"]
        for package in LOCK["package"]
        for file in (*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ()))
    }
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert blocks
    for block in blocks:
        name, version = re.match(r"([\w.-]+)==([\w.!+]+)", block).groups()  # type: ignore[union-attr]
        assert (name, version) in versions
        hashes = set(re.findall(r"--hash=(sha256:\w+)", block))
        assert hashes and hashes <= files, name


def test_nothing_of_cuda_is_in_what_a_machine_without_a_card_installs() -> None:
    for name in ("all", "image", "dev", "models", "source"):
        names = re.findall(r"^([\w.-]+)==", (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), re.MULTILINE)
        assert not [name for name in names if re.match(r"torch$|nvidia-|cuda-|triton$", name)]
    cuda = (FOLDER / "torch.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==", cuda, re.MULTILINE) and "nvidia-" in cuda


OWN_ENVIRONMENTS = {  # of other makers' programs, which tests start next to ours
    "$(VLLM)/bin/pip",
    "$$folder/bin/pip",
}


def installations() -> list[tuple[str, str]]:
    """Each command of the Makefile, the workflows and the images that installs Python packages, with its file."""
    texts = {"Makefile": (ROOT / "Makefile").read_text(encoding="utf-8")}
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
        texts[workflow.name] = "\n".join(step.get("run", "") for job in jobs for step in job["steps"])
    for name in ("Dockerfile", "Dockerfile.gpu", ".ci/run"):
        texts[name] = (ROOT / name).read_text(encoding="utf-8")
    lines = [
        (name, line.strip())
        for name, text in texts.items()
        for line in text.replace("\\\n", " ").splitlines()
        if not line.lstrip().startswith("#")
    ]
    return [(name, line) for name, line in lines if re.search(r"pip3? install|uv sync|uvx|uv tool|pipx", line)]


def test_everything_is_installed_from_the_lock_and_built_with_what_it_has() -> None:
    found = installations()
    assert {name for name, _ in found} >= {"Makefile", "Dockerfile", "Dockerfile.gpu", "ci.yml"}
    for name, line in found:
        if not any(environment in line for environment in OWN_ENVIRONMENTS):
            own = "--no-build-isolation" in line and re.search(r"(?:--editable|-e)? \.$", line)
            listed = "--require-hashes" in line and re.search(r"-r requirements/\w+\.txt$", line)
            assert "--no-deps" in line and (own or listed), f"{name}: {line}"
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "Dockerfile", "Dockerfile.gpu")]
    assert all("requirements/install.py" in text for text in texts)
    assert "build --no-isolation" in texts[0]


def planned(monkeypatch: pytest.MonkeyPatch, *options: str, card: bool = False, failing: str = "") -> list[list[str]]:
    """The commands of requirements/install.py, which are not run; those with `failing` in them fail."""
    source = {"__name__": "install", "__file__": str(FOLDER / "install.py")}
    exec(compile((FOLDER / "install.py").read_text(encoding="utf-8"), "install.py", "exec"), source)
    commands: list[list[str]] = []

    def run(command: list[str]) -> bool:
        commands.append(command)
        return not failing or failing not in command

    monkeypatch.setitem(source, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if card else None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["install.py", *options])
    source["main"]()  # type: ignore[operator]
    return commands


@pytest.mark.parametrize("installer", [[], ["--uv"]])
def test_all_but_torch_is_installed_by_hash_and_not_resolved(
    monkeypatch: pytest.MonkeyPatch, installer: list[str]
) -> None:
    *locked, torch = planned(monkeypatch, *installer, "--add", "dev")
    assert all({"--no-deps", "--require-hashes"} <= {*command} for command in locked)
    assert [word for word in locked[0] if word.endswith(".txt")] == [str(FOLDER / f"{x}.txt") for x in ("all", "dev")]
    assert "--no-index" in torch and torch[-1].startswith("torch>=")


def test_a_machine_with_a_card_gets_the_locked_torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = planned(monkeypatch, card=True)[-1]
    assert "--require-hashes" in torch and torch[-1] == str(FOLDER / "torch.txt")


def test_a_machine_without_a_wheel_of_torch_asks_for_the_locked_version_without_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = planned(monkeypatch, failing="--no-index")[-1]
    (version,) = [package["version"] for package in LOCK["package"] if package["name"] == "torch"]
    assert torch[-1] == f"torch=={version}" and torch[torch.index("--index-url") + 1].endswith("/cpu")


# The advisories.
PROJECT = """
[build-system]
requires = ["setuptools>=80"]
[project]
dependencies = ["alpha>=1.2", "beta[extra]>=2"]
"""
LOCKED = """
version = 1
[[package]]
name = "alpha"
version = "1.5"
source = { registry = "index" }
[[package]]
name = "beta"
version = "2.0"
source = { registry = "index" }
[[package]]
name = "own"
source = { editable = "." }
"""


def record(name: str = "alpha", **affected: Any) -> dict[str, Any]:
    entry = {"package": {"ecosystem": "PyPI", "name": name}, **affected}
    return {"id": "TEST-1", "aliases": ["CVE-1"], "modified": TODAY, "summary": "made up", "affected": [entry]}


def below(version: str) -> dict[str, Any]:
    return {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": version}]}]}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "uv.lock").write_text(LOCKED)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "advisories").mkdir()
    return tmp_path


def audit(project: Path, *records: dict[str, Any], source: str = "") -> tuple[int, str]:
    for number, written in enumerate(records):
        (project / "advisories" / f"{number}.json").write_text(json.dumps(written))
    command = [
        sys.executable,
        str(FOLDER / "audit.py"),
        "--project",
        str(project),
        source or str(project / "advisories"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_set_without_known_holes_passes(project: Path) -> None:
    status, printed = audit(project, record(**below("1.1")), record("gamma", **below("9")))
    assert status == 0 and "0 vulnerable, 0 skipped" in printed


@pytest.mark.parametrize(
    "affected",
    [
        below("1.6"),
        {"versions": ["1.4", "1.5.0"]},
        {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.3"}, {"last_affected": "1.5"}]}]},
        {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1"}, {"introduced": "1.5rc1"}]}]},
    ],
)
def test_a_locked_version_with_a_hole_fails(project: Path, affected: dict[str, Any]) -> None:
    status, printed = audit(project, record("Alpha", **affected))
    assert status == 1 and "vulnerable: alpha 1.5 of uv.lock: TEST-1, CVE-1 made up" in printed


def test_a_lowest_version_with_a_hole_fails_though_the_locked_one_has_none(project: Path) -> None:
    status, printed = audit(project, record(**below("1.3")), record("setuptools", **below("81")))
    assert status == 1 and "alpha 1.5" not in printed
    assert "alpha 1.2 of pyproject.toml" in printed and "setuptools 80 of pyproject.toml" in printed


def test_a_withdrawn_record_and_one_accepted_until_today_pass_and_an_expired_one_fails(project: Path) -> None:
    assert audit(project, record(**below("2")) | {"withdrawn": TODAY}, record(**below("1")))[0] == 0
    accepted = project / "requirements" / "accepted.toml"
    for days, status in ((0, 0), (-1, 1)):
        until = (datetime.now(UTC) + timedelta(days=days)).date()
        accepted.write_text(f'[CVE-1]\nreason = "no one reaches it"\nuntil = {until}\n')
        assert audit(project, record(**below("2")))[0] == status


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "all 5 packages: there are no records for PyPI"),
        ([record() | {"affected": []}], "all 5 packages"),
        ([record(**below("1")) | {"modified": "2020-01-01T00:00:00Z"}], "older than 30 days"),
        (
            [record(ranges=[{"type": "GIT", "events": [{"introduced": "0"}]}])],
            "TEST-1 can't be compared with alpha 1.5",
        ),
        ([record(**below("next tuesday"))], "TEST-1 can't be compared with alpha 1.5"),
    ],
)
def test_what_was_not_compared_fails(project: Path, records: list[dict[str, Any]], said: str) -> None:
    status, printed = audit(project, *records)
    assert status == 1 and "0 vulnerable" in printed and said in printed


def test_a_package_that_comes_from_elsewhere_than_an_index_fails(project: Path) -> None:
    with (project / "uv.lock").open("a") as lock:
        lock.write('[[package]]\nname = "fork"\nversion = "1"\nsource = { git = "somewhere" }\n')
    status, printed = audit(project, record(**below("1")))
    assert status == 1 and "skipped: fork of uv.lock has no version to compare" in printed


def test_a_zip_of_records_is_read(project: Path) -> None:
    with zipfile.ZipFile(project / "all.zip", "w") as archive:
        archive.writestr("TEST-1.json", json.dumps(record(**below("1.6"))))
    assert audit(project, source=str(project / "all.zip"))[0] == 1


@pytest.mark.parametrize("source", ["https://127.0.0.1:9/all.zip", "missing.zip"])
def test_an_address_that_does_not_answer_fails_in_a_sentence(project: Path, source: str) -> None:
    status, printed = audit(project, source=source)
    assert status == 1 and printed.startswith(f"error: advisories could not be read from {source}")
    assert "Nothing was checked." in printed and "next:" in printed


def test_the_accepted_records_have_reasons_and_end() -> None:
    path = FOLDER / "accepted.toml"
    for entry in (tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}).values():
        assert entry["reason"] and entry["until"]
