"""The arguments of every written project go through vLLM's own parser: of the pinned version, and of the oldest in use."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import real_vllm
import yaml

from tuneloop.deploy.deployment import LORA_SLOTS, VLLM_VERSION, Card, Form, Machine, Replicas, ServingJob, Size
from tuneloop.deploy.hosts import find_host, hosts

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not real_vllm.PYTHON, reason="vLLM is not installed: make test-vllm"),
]
HOSTS = [name for name, host in hosts().items() if host.vllm and {"merged", "adapter"} & set(host.forms)]
CASES = [(name, form) for name in HOSTS for form in ("adapter", "merged") if form in find_host(name).forms]
OLDEST = "0.23.0"  # in the images of RunPod and SageMaker, which bring a vLLM of their own
FP32_HEAD = {"head_dtype": "float32"}

# Reads lists of arguments on stdin, or records of the engine's keyword arguments; writes what the parser understood.
PARSE = """
import json, sys
from vllm import version
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.engine.arg_utils import AsyncEngineArgs
NAMES = ("model", "tokenizer", "max_model_len", "hf_overrides", "scheduling_policy", "generation_config", "enable_lora",
         "max_loras", "max_lora_rank", "tensor_parallel_size", "dtype", "enable_prefix_caching")
replies = []
for each in json.load(sys.stdin):
    if isinstance(each, list):
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(each)
        engine = AsyncEngineArgs.from_cli_args(args)
        more = {"model": args.model_tag or engine.model, "served_model_name": args.served_model_name,
                "lora_modules": [[m.name, m.path] for m in args.lora_modules or ()]}
    else:
        engine, more = AsyncEngineArgs(**each), {}
    replies.append({name: getattr(engine, name) for name in NAMES} | more)
print("\\n" + json.dumps([version.__version__, replies], default=str))
"""


def job(host: str, form: Form, **settings: Any) -> ServingJob:
    gpus = find_host(host).gpus
    machine = Machine(Card(next(iter(gpus)), "a card", 80.0), 1) if gpus else None
    return ServingJob(
        "tickets", "tickets-0123", form, "meta-llama/Llama-3.1-8B-Instruct", "acme/tickets", Size(15.0, 131072, 4096),
        rank=24, ends=(128009,), machine=machine, traffic=Replicas(1, 3), **settings,
    )  # fmt: skip


def from_modal(files: dict[str, str]) -> Any:
    for node in ast.walk(ast.parse(files["app.py"])):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "command":
            return ast.literal_eval(node.value)[2:]
    raise AssertionError("no command")


def from_replicate(files: dict[str, str]) -> Any:
    for node in ast.walk(ast.parse(files["predict.py"])):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "AsyncEngineArgs":
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    raise AssertionError("no engine")


def from_runpod(files: dict[str, str]) -> Any:
    """As the worker does: each variable is an option in small letters, a few have names of their own."""
    names = {"MODEL_NAME": "--model", "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "--served-model-name"}
    sentence = []
    for name, text in json.loads(files["template.json"])["env"].items():
        if name not in ("MAX_CONCURRENCY", "HF_TOKEN"):
            option = names.get(name, "--" + name.replace("_", "-").lower())
            sentence += [option] if text == "true" else [option, text]
    return sentence


def from_sagemaker(files: dict[str, str]) -> Any:
    container = json.loads(files["requests.json"])["create_model"]["PrimaryContainer"]["Environment"]
    names = {"HF_MODEL_ID": "--model", "OPTION_TENSOR_PARALLEL_DEGREE": "--tensor-parallel-size"}
    of_the_container = ("OPTION_ROLLING_BATCH", "OPTION_ASYNC_MODE", "OPTION_ENTRYPOINT")
    sentence = []
    for name, text in container.items():
        if name in names or (name.startswith("OPTION_") and name not in of_the_container):
            sentence += [names.get(name, "--" + name.removeprefix("OPTION_").lower()), text]
    return sentence


def container(files: dict[str, str]) -> Any:
    documents = yaml.safe_load_all(files["service.yaml"])
    pod = next(document for document in documents if document["kind"] == "Deployment")["spec"]["template"]["spec"]
    return pod["containers"][0]["command"][2:]


# What each project gives to vLLM, read in its files: a list of arguments, or keyword arguments of the engine.
ARGUMENTS: dict[str, Callable[[dict[str, str]], Any]] = {
    "modal": from_modal,
    "replicate": from_replicate,
    "runpod": from_runpod,
    "sagemaker": from_sagemaker,
    "kubernetes": container,
    "baseten": lambda files: shlex.split(yaml.safe_load(files["config.yaml"])["docker_server"]["start_command"])[2:],
    "huggingface": lambda files: json.loads(files["endpoint.json"])["container_args"],
    "compose": lambda files: yaml.safe_load(files["compose.yaml"])["services"]["engine"]["command"],
}


def parsed(lists: list[Any], version: str) -> list[dict[str, Any]]:
    """What vLLM understands of arguments; it exits at the first that it does not know."""
    older = Path(real_vllm.PYTHON).parent.parent / "older"
    if version == OLDEST and not (older / "vllm").is_dir():
        pytest.skip(f"vLLM {version} is not installed: make test-vllm")
    offline = {"HF_HUB_OFFLINE": "0"}  # else it looks for the model; nothing is fetched
    variables = {**os.environ, **real_vllm.VARIABLES, **offline, "PYTHONPATH": str(older) if version == OLDEST else ""}
    done = subprocess.run(
        [real_vllm.PYTHON, "-c", PARSE], input=json.dumps(lists), capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parser, replies = json.loads(done.stdout.splitlines()[-1])
    assert parser == version
    return list(replies)


@pytest.mark.parametrize("version", [VLLM_VERSION, OLDEST])
def test_vllm_understands_the_arguments_of_every_project(version: str) -> None:
    jobs = [
        replace(job(name, form), scores_labels=special, priorities=special)  # type: ignore[arg-type]
        for name, form in CASES
        for special in (False, True)
    ]
    names = [name for name, _ in CASES for _ in range(2)]
    lists = [ARGUMENTS[name](find_host(name).project(entry)) for name, entry in zip(names, jobs, strict=True)]
    assert len(lists) == len(CASES) * 2 >= 40
    for name, item, read in zip(names, jobs, parsed(lists, version), strict=True):
        adapter, at_huggingface = item.form == "adapter", name == "huggingface"
        where = "/repository" if at_huggingface else "acme/tickets"
        assert read["model"] == (item.base if adapter else where), name
        assert read["max_model_len"] == 4096 and read["generation_config"] == "vllm", name
        assert read["hf_overrides"] == (FP32_HEAD if item.scores_labels else {}), name
        assert read["scheduling_policy"] == ("priority" if item.priorities else "fcfs"), name
        assert read["enable_prefix_caching"] is not False, name
        assert read["dtype"] == "auto", name
        assert bool(read["enable_lora"]) == adapter, name
        if adapter:
            assert (read["max_lora_rank"], read["max_loras"]) == (32, LORA_SLOTS), name
            assert read["tokenizer"] == where, "else the base's chat template and end of turn apply"
            if name != "replicate":  # which loads it by other means
                assert read["lora_modules"] == [["tickets", where]], name
        if "served_model_name" in read and name != "sagemaker":
            assert read["served_model_name"] == ["base" if adapter else "tickets"], name


def test_vllm_refuses_an_option_that_it_does_not_know() -> None:
    with pytest.raises(AssertionError, match="--hf-override-config"):
        parsed([["acme/tickets", "--hf-override-config", "{}"]], VLLM_VERSION)
