"""What is written for a host is what the host's own definitions accept."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from host_definitions import in_environment, schema

from places import ROOT
from tuneloop.core.errors import UserError
from tuneloop.deploy.deployment import Card, Form, Machine, Replicas, ServingJob, Size
from tuneloop.deploy.hosts import find_host, hosts, refuse_form
from tuneloop.deploy.project_text import readme, request_text

NAMES = [
    "runpod", "modal", "baseten", "replicate", "together", "huggingface", "sagemaker",
    "kubernetes", "compose", "ollama",
]  # fmt: skip


def job(host: str, form: Form = "merged", cards: int = 1, traffic: Replicas = Replicas(1, 3)) -> ServingJob:
    known = find_host(host).gpus
    key = next((key for key in ("a100-80gb", "h100-sxm") if cards in find_host(host).counts.get(key, (1, 2, 4, 8))), "")
    key = key if key in known else next(iter(known), "")
    machine = Machine(Card(key, "a card", 80.0, 1.5, "$1.5 an hour"), cards) if known else None
    return ServingJob(
        "tickets", "tickets-merged-0123", form, "meta-llama/Llama-3.1-8B-Instruct", "acme/tickets", Size(15.0, 131072, 4096),
        file="model.gguf", rank=24, ends=(128009,) if form == "adapter" else (), system="File the ticket.", machine=machine, traffic=traffic,
    )  # fmt: skip


CASES = [(name, form) for name in NAMES for form in find_host(name).forms]


def written(host: str, form: Form, folder: Path, **settings: Any) -> dict[str, Path]:
    files = find_host(host).project(job(host, form, **settings))
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in files}


def test_every_host_of_the_list_is_there() -> None:
    assert sorted(hosts()) == sorted(NAMES)
    with pytest.raises(UserError, match="No host 'kubernets'") as caught:
        find_host("kubernets")
    assert "kubernetes" in caught.value.next_step


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_project_names_the_model_its_template_and_no_secret(name: str, form: Form) -> None:
    host, item = find_host(name), job(name, form)
    text = "\n".join(host.project(item).values()) + readme(host, item)
    assert "tickets" in text and "4,096 tokens" in text and "File the ticket." in text
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{8,}", text)
    assert len(host.commands(item)) == 3 and host.unchecked and ", read on 2026-" in host.source
    assert host.unchecked in readme(host, item) and host.source in readme(host, item)


def test_the_page_says_of_each_host_what_it_was_held_against() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    rows = [
        line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `") and "--to" not in line
    ]
    table = {name.strip("`"): (forms, against) for name, forms, _, against in rows[: len(NAMES)]}
    assert list(table) == NAMES
    for name, (forms, against) in table.items():
        assert ", ".join(find_host(name).forms) == forms and re.search(r"\d", against)


@pytest.mark.parametrize(("name", "form"), [case for case in CASES if case[1] == "adapter"])
def test_an_adapter_is_served_on_its_base_with_room_for_its_rank(name: str, form: Form) -> None:
    text = "\n".join(find_host(name).project(job(name, form)).values())
    if name != "together":  # it reads the rank in the adapter's own files
        assert "meta-llama/Llama-3.1-8B-Instruct" in text and "32" in text
    assert "24" not in re.findall(r"rank\D{1,6}(\d+)", text)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_yaml_has_neither_anchors_nor_escapes(name: str, form: Form) -> None:
    item = replace(job(name, form), scores_labels=True)
    for file, text in find_host(name).project(item).items():
        if file.endswith((".yaml", ".yml")):
            assert not re.search(r"[:-] [&*]\w+$", text, re.M), "an anchor"
            assert "\\" not in text and not re.search(r"\w''|''\w", text), "an escape"


@pytest.mark.parametrize("name", [name for name in NAMES if find_host(name).vllm])
def test_labels_are_scored_by_a_head_in_float32_and_background_work_by_priority(name: str) -> None:
    host = find_host(name)
    form = next(form for form in host.forms if not form.startswith("gguf"))
    plain = "\n".join(host.project(job(name, form)).values())
    special = "\n".join(host.project(replace(job(name, form), scores_labels=True, priorities=True)).values())
    assert re.search(r"head_dtype\W+float32", special) and "head_dtype" not in plain
    assert re.search(r"scheduling.policy\W+priority", special, re.I) and "priority" not in plain


@pytest.mark.parametrize("name", [name for name in NAMES if find_host(name).gpus])
def test_several_cards_share_a_model(name: str) -> None:
    number = max(find_host(name).counts.get("a100-80gb", (1, 2, 4, 8)))
    assert str(number) in "\n".join(
        find_host(name).project(job(name, find_host(name).forms[-1], cards=number)).values()
    )


@pytest.mark.parametrize("name", [name for name in NAMES if {"t4", "v100-16gb"} & set(find_host(name).gpus)])
def test_a_card_without_bfloat16_computes_in_half_precision(name: str) -> None:
    host = find_host(name)
    for form in set(host.forms) - {"gguf"}:
        known = job(name, form)
        assert known.machine is not None
        old = replace(known.machine, card=replace(known.machine.card, key="t4", bf16=False))
        assert "half" in "\n".join(host.project(replace(known, machine=old)).values())
        assert "half" not in "\n".join(host.project(known).values())


@pytest.mark.parametrize(("name", "form"), CASES)
def test_every_variable_of_the_commands_is_explained(name: str, form: Form) -> None:
    host, item = find_host(name), job(name, form)
    commands = "\n".join(command for command, _ in host.commands(item))
    told = readme(host, item)
    for command, _ in host.commands(item):
        told = told.replace(command, "")
    set_there = set(re.findall(r"^([A-Z_]+)=", commands, re.M)) | {"PORT", "PWD"}
    used = set(re.findall(r"\$\{?([A-Z_]+)", commands)) - set_there
    assert not [variable for variable in used if variable not in told and EXPLAINED.get(variable, "?") not in told]


# What is only known when it is there -> the words that say where it is told.
EXPLAINED = {
    "MODEL_ID": "`truss push` reports the model's id", "ENDPOINT_URL": "the address is in what deploy.py prints",
}  # fmt: skip


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_first_request_is_as_the_model_was_trained(name: str, form: Form) -> None:
    host, item = find_host(name), job(name, form)
    text = request_text(host, item)
    asks = host.commands(item)[1][0]
    if text is None:
        assert name == "replicate" and "request.json" not in asks
        return
    request = json.loads(text)
    assert "request.json" in asks and request["messages"][0] == {"role": "system", "content": "File the ticket."}
    assert (request.get("model") or "").endswith("tickets") or name == "sagemaker"
    assert request.get("stop_token_ids") == ([128009] if host.vllm and item.ends else None)
    assert request["temperature"] == 0, "as it was evaluated"


@pytest.mark.parametrize("form", ["gguf", "merged", "adapter"])
def test_compose_mounts_what_is_not_on_the_hub(form: Form) -> None:
    local = yaml.safe_load(find_host("compose").project(replace(job("compose", form), repo=""))["compose.yaml"])
    engine = local["services"]["engine"]
    assert engine["volumes"][0] == "${ARTIFACT:?the folder of the artifact}:/models:ro"
    assert any(word.endswith(("/models", "/models/model.gguf")) for word in engine["command"])
    assert ("HF_TOKEN" in engine["environment"]) == (form == "adapter"), "its base comes from the hub"


@pytest.mark.parametrize("hub", [True, False])
def test_compose_asks_for_a_token_only_where_the_base_is_gated(hub: bool) -> None:
    host = find_host("compose")
    for base, gated in (("meta-llama/Llama-3.1-8B-Instruct", True), ("Qwen/Qwen2.5-0.5B-Instruct", False)):
        item = replace(job("compose", "adapter"), base=base)
        files = host.project(item if hub else replace(item, repo=""))
        environment = yaml.safe_load(files["compose.yaml"])["services"]["engine"]["environment"]
        assert environment.get("HF_TOKEN", "").startswith("${HF_TOKEN:?") == gated
        assert ("\nHF_TOKEN=" in files[".env.example"]) == gated
        assert ("HF_TOKEN" in environment) == (gated or hub)  # what was pushed may be private


def test_with_priorities_compose_lets_a_server_in_front_load_the_adapter() -> None:
    for form, loads in (("adapter", True), ("merged", False)):
        item = replace(job("compose", form), priorities=True)  # type: ignore[arg-type]
        files = find_host("compose").project(item)
        engine = yaml.safe_load(files["compose.yaml"])["services"]["engine"]
        assert ("VLLM_ALLOW_RUNTIME_LORA_UPDATING" in engine["environment"]) == loads
        mounts = [mount for mount in engine["volumes"] if mount.endswith(":${ARTIFACT}:ro")]  # the path of both
        assert bool(mounts) == ("ARTIFACT=" in files[".env.example"]) == loads
        assert "priority" in engine["command"] and ("--enable-lora" in engine["command"]) == loads


def test_a_readme_asks_for_a_token_only_where_something_is_read_from_the_hub() -> None:
    for form, asks in (("gguf", False), ("merged", False), ("adapter", True)):
        item = replace(job("compose", form), repo="")
        assert ("HF_TOKEN" in readme(find_host("compose"), item)) == asks
    for form, asks in (("gguf", False), ("adapter", True)):
        assert ("HF_TOKEN" in readme(find_host("kubernetes"), job("kubernetes", form))) == asks


def test_what_runs_on_a_machine_of_one_s_own_names_no_bill() -> None:
    host, item = find_host("ollama"), job("ollama", "gguf")
    assert "costs nothing more" in readme(host, item) and "bills by use" not in readme(host, item)
    assert "cd " not in host.commands(item)[0][0], "the first request lies in this folder"


def test_a_format_that_a_host_can_t_serve_names_one_that_it_can() -> None:
    with pytest.raises(UserError, match="Ollama does not serve the format 'merged'") as caught:
        refuse_form(find_host("ollama"), "merged")
    assert "--format gguf" in caught.value.next_step


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_the_predictor_is_python_that_cog_s_schema_and_names_fit(tmp_path: Path, form: Form) -> None:
    files = written("replicate", form, tmp_path)
    jsonschema.validate(yaml.safe_load(files["cog.yaml"].read_text()), json.loads(schema("cog.json").read_text()))
    tree = ast.parse(files["predict.py"].read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Predictor")
    assert {node.name for node in found.body if isinstance(node, ast.AsyncFunctionDef)} == {"setup", "predict"}


@pytest.mark.parametrize("form", find_host("compose").forms)
def test_compose_files_fit_the_specification(tmp_path: Path, form: Form) -> None:
    files = written("compose", form, tmp_path)
    jsonschema.validate(
        yaml.safe_load(files["compose.yaml"].read_text()), json.loads(schema("compose.json").read_text())
    )


@pytest.mark.parametrize(("form", "cards"), [("merged", 1), ("adapter", 1), ("merged", 4)])
def test_runpod_s_worker_turns_the_variables_into_the_engine_s_options(tmp_path: Path, form: Form, cards: int) -> None:
    files = written("runpod", form, tmp_path, cards=cards)
    known: dict[str, Any] = {}
    exec(compile(schema("runpod-args.py").read_text(), "args_builder.py", "exec"), known)
    variables = json.loads(files["template.json"].read_text())["env"]
    flags = known["VALUE_FLAGS"] | known["PAIRED_BOOL_FLAGS"] | known["BOOL_FLAGS"]
    named = {flag.lstrip("-").replace("-", "_").upper() for flag in flags} | set(known["ENV_ALIASES"])
    assert variables.keys() <= named | {"MODEL_NAME", "HF_TOKEN", "MAX_CONCURRENCY"}


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_huggingface_hub_takes_the_endpoint(tmp_path: Path, form: Form) -> None:
    import inspect

    from huggingface_hub import create_inference_endpoint

    values = json.loads(written("huggingface", form, tmp_path)["endpoint.json"].read_text())
    inspect.signature(create_inference_endpoint).bind(**values)
    assert len(values["name"]) <= 32


@pytest.mark.parametrize("cards", [1, 8])
def test_botocore_accepts_the_calls(tmp_path: Path, cards: int) -> None:
    files = written("sagemaker", "merged", tmp_path, cards=cards)
    code = """
import json, sys, botocore.session, botocore.validate
api = botocore.session.get_session().get_service_model("sagemaker")
for name, values in json.load(open(sys.argv[1])).items():
    operation = "".join(part.title() for part in name.split("_"))
    report = botocore.validate.ParamValidator().validate(values, api.operation_model(operation).input_shape)
    assert not report.has_errors(), report.generate_report()
    kinds = api.shape_for("ProductionVariantInstanceType").enum
    for variant in values.get("ProductionVariants", []):
        assert variant["InstanceType"] in kinds, variant
"""
    in_environment("boto3", code, files["requests.json"])


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_truss_reads_the_config_and_knows_each_key(tmp_path: Path, form: Form) -> None:
    written("baseten", form, tmp_path)
    code = """
import sys, pathlib, typing, yaml, pydantic
from truss.base.truss_config import TrussConfig
path = pathlib.Path(sys.argv[1])
TrussConfig.from_yaml(path / "config.yaml")
def check(values, model, where=""):
    for key, value in values.items():
        assert key in model.model_fields, f"{where}{key}"
        kind = model.model_fields[key].annotation
        for one in (kind, *typing.get_args(kind)):
            if isinstance(one, type) and issubclass(one, pydantic.BaseModel) and isinstance(value, dict):
                check(value, one, f"{where}{key}.")
check(yaml.safe_load((path / "config.yaml").read_text()), TrussConfig)
"""
    in_environment("truss", code, tmp_path)


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_modal_builds_the_app_without_a_token(tmp_path: Path, form: Form) -> None:
    files = written("modal", form, tmp_path)
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("app", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
assert list(module.app.registered_functions) == ["serve"], module.app.registered_functions
"""
    in_environment("modal", code, files["app.py"], HOME=str(tmp_path))


@pytest.mark.parametrize("traffic", [Replicas(1, 1), Replicas(0, 4)])
@pytest.mark.parametrize("form", ["merged", "adapter", "gguf"])
def test_kubernetes_accepts_the_manifests_strictly(tmp_path: Path, form: Form, traffic: Replicas) -> None:
    files = written("kubernetes", form, tmp_path, traffic=traffic)
    code = """
import sys, yaml, kubernetes_validate
for path in sys.argv[1:]:
    for each in yaml.safe_load_all(open(path)):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
"""
    in_environment("kubernetes-validate", code, *files.values())


def resources(path: Path) -> dict[str, dict[str, Any]]:
    """The resources of a file by kind."""
    return {item["kind"]: item for item in yaml.safe_load_all(path.read_text())}


def test_replicas_come_and_go_where_there_may_be_more(tmp_path: Path) -> None:
    item = resources(written("kubernetes", "merged", tmp_path, traffic=Replicas(1, 1))["service.yaml"])
    assert "HorizontalPodAutoscaler" not in item and item["Deployment"]["spec"]["replicas"] == 1
    assert item["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    more = resources(written("kubernetes", "merged", tmp_path, traffic=Replicas(0, 4, idle_minutes=30))["service.yaml"])
    scaler = more["HorizontalPodAutoscaler"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 4)
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 1800
    assert "replicas" not in more["Deployment"]["spec"], "a second apply would set it back"
    assert more["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_together_s_command_knows_each_option(tmp_path: Path, form: Form) -> None:
    files = written("together", form, tmp_path)
    code = r"""
import re, subprocess, sys
text = open(sys.argv[1]).read().replace("\\\n", " ")
for group, verb, rest in re.findall(r"tg (models|endpoints) (\w+)([^|\n]*)", text):
    known = subprocess.run([sys.argv[2], group, verb, "--help"], capture_output=True, text=True, env={"COLUMNS": "300", "HOME": sys.argv[3]}).stdout
    assert known.startswith("Usage"), (group, verb)
    for option in re.findall(r"--[a-z-]+", rest):
        assert option in known or option.replace("--", "--no-") in known, (group, verb, option)
"""
    from host_definitions import FOLDER

    in_environment("together", code, files["deploy.sh"], FOLDER / "together" / "bin" / "together", tmp_path)
