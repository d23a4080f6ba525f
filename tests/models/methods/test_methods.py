"""Each method says all about itself in its record, and users add their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from places import ROOT
from tuneloop.core.errors import UserError
from tuneloop.core.python_file import trust_code
from tuneloop.models.load import load_model
from tuneloop.models.methods import shipped as registry
from tuneloop.models.methods.shipped import (
    SHIPPED,
    Method,
    base_only,
    find_method,
    method_named,
    method_of_folder,
    names_of_methods,
    register,
)
from tuneloop.models.nn.shape import ModelShape
from tuneloop.models.trained import load_trained
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.config import PlanOptions
from tuneloop.planning.job import make_job
from tuneloop.release.artifact import form_for
from tuneloop.training.config import TrainConfig

SOURCE = ROOT / "src" / "tuneloop"


@pytest.fixture(autouse=True)
def _forget_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    monkeypatch.setattr(registry, "_of_files", {})


def described(name: str, **changes: object) -> str:
    """The text of a file that describes a method."""
    settings = "".join(f", {key}={value!r}" for key, value in changes.items())
    return (
        "from dataclasses import replace\nfrom tuneloop.models.methods.full import FULL\n"
        f"OWN = replace(FULL, name={name!r}, title='own'{settings})\n"
    )


def test_the_records_need_no_torch_and_no_numpy() -> None:
    code = """import sys; sys.modules["torch"] = None; sys.modules["numpy"] = None
from tuneloop.models.methods.shipped import methods
from tuneloop.planning.options import plan_machines
for method in methods():
    print(method.name, plan_machines({"model": "llama-3.2-1b", "method": method.name, "gpu": "h100-sxm"})["trainable_parameters"])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          env={"PYTHONPATH": str(SOURCE.parent), "PATH": "", "TUNELOOP_LEDGER": "/dev/null"})  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()] == [method.name for method in SHIPPED]


@pytest.mark.parametrize("method", SHIPPED, ids=lambda method: method.name)
def test_every_record_is_whole(method: Method) -> None:
    assert method.title and method.about and method.learning_rate > 0 and method.load and method.resume
    assert method.forms and set(method.forms) | set(method.no_form) == {"merged", "adapter"}
    assert (method.merge is not None) == (method.disabled is not None and "merged" in method.forms)
    assert method.how == ("all weights" if method.footprint.all_weights else f"with {method.title}")


@pytest.mark.parametrize(
    "targets", ["all-linear", "attention", "q,v", "down"], ids=lambda targets: targets.replace(",", "+")
)
def test_lora_parameters_are_pefts(tiny_llama: Path, targets: str) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from tuneloop.models.nn.shape import target_modules

    net = AutoModelForCausalLM.from_pretrained(tiny_llama)
    shape = ModelShape.from_config(json.loads((tiny_llama / "config.json").read_text()))
    names = target_modules(targets)
    job = make_job(model="tiny", shape=shape, gpu=find_gpu("h100-sxm"), rank=8, targets=names, seq_len=32)
    adapted = peft.get_peft_model(net, peft.LoraConfig(r=8, target_modules=list(names), task_type="CAUSAL_LM"))
    assert job.trainable == adapted.get_nb_trainable_parameters()[0]


def test_prefix_parameters_are_pefts(tiny_llama: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(tiny_llama)
    shape = ModelShape.from_config(json.loads((tiny_llama / "config.json").read_text()))
    job = make_job(model="tiny", shape=shape, gpu=find_gpu("h100-sxm"), method="prefix", prefix_tokens=7, seq_len=32)
    adapted = peft.get_peft_model(net, peft.PrefixTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"))
    assert job.trainable == adapted.get_nb_trainable_parameters()[0]


def test_lora_of_llama_3_1_8b_is_the_known_count() -> None:
    # rank 16 on all seven matrices of a layer: PEFT prints 41,943,040 trainable parameters
    job = make_job(model="llama-3.1-8b", shape=find_model("llama-3.1-8b")[1], gpu=find_gpu("h100-sxm"), rank=16)
    assert job.trainable == 41_943_040


@pytest.mark.parametrize("name", ["full", "lora", "prefix"])
def test_a_saved_folder_says_whose_it_is(name: str, make_run: Callable[..., Path], tiny_llama: Path) -> None:
    run = make_run(method=name)
    method = method_named(name)
    assert method_of_folder(run / method.folder) is method
    model = load_model(str(tiny_llama), dtype="float32")
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    load_trained(model, run)
    with base_only(model.net):
        same = all(
            (model.net.state_dict()[key] == value).all()
            for key, value in before.items()
            if key in model.net.state_dict()
        )
    assert same == (method.disabled is not None)


def test_an_adapter_on_four_bits_is_told_from_one_on_a_plain_base(make_run: Callable[..., Path]) -> None:
    folder = make_run() / "adapter"
    own = json.loads((folder / "tuneloop.json").read_text())
    (folder / "tuneloop.json").write_text(json.dumps({**own, "quantised": "nf4"}))
    found = method_of_folder(folder)
    assert found is not None and found.name == "qlora"
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    assert method_of_folder(folder) is None


def test_an_adapter_in_a_layout_of_its_own_is_loaded_by_its_method(
    make_run: Callable[..., Path], tiny_llama: Path
) -> None:
    folder = make_run() / "adapter"
    own = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**own, "peft_type": "OWN"}))
    model = load_model(str(tiny_llama), dtype="float32")
    with pytest.raises(UserError, match="Not a plain LoRA adapter"):
        load_trained(model, folder)
    loaded: list[Path] = []
    register(replace(method_named("lora"), name="own", layout="OWN", load=lambda model, path: loaded.append(path)))
    load_trained(model, folder.parent)
    assert loaded == [folder]


def test_settings_of_another_method_are_refused() -> None:
    for settings, sentence in (
        ({"method": "full", "dora": True}, "train.dora is of lora and qlora only"),
        ({"optimizer_in_backward": True}, "train.optimizer_in_backward is of full only: an adapter's gradients are small"),
        ({"method": "prefix", "packing": True}, "a prefix stands before every row"),
        ({"method": "full", "kl": 0.1}, "with train.method=full use train.l2_start"),
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=sentence):
            TrainConfig.model_validate(settings)


def test_a_learning_rate_is_the_methods_own() -> None:
    for method in SHIPPED:
        assert TrainConfig(method=method.name).learning_rate == method.learning_rate
        assert TrainConfig(method=method.name, loss="dpo").learning_rate == pytest.approx(method.learning_rate / 10)


def test_the_forms_of_an_export_are_the_methods_own() -> None:
    assert [form_for(method, "") for method in SHIPPED] == ["merged", "merged", "merged", "adapter"]
    with pytest.raises(UserError, match="A prefix can't be merged"):
        form_for(method_named("prefix"), "merged")
    with pytest.raises(UserError, match="trained all weights"):
        form_for(method_named("full"), "adapter")
    with pytest.raises(UserError, match="No such format 'gguff'"):
        form_for(method_named("lora"), "gguff")
    for quant, form in (("Q4_K_M", "gguf"), ("fp8", "merged")):
        with pytest.raises(UserError) as caught:
            form_for(method_named("lora"), quant)
        assert f"--format {form} --quant {quant.lower()}" in caught.value.next_step


def test_the_commands_help_names_every_method() -> None:
    assert names_of_methods() in str(PlanOptions.model_fields["method"].description)


def test_a_registered_method_is_known_and_one_that_ships_keeps_its_name(tmp_path: Path) -> None:
    own = register(replace(method_named("full"), name="mine", title="mine"))
    assert find_method("mine") is own and TrainConfig(method="mine").method == "mine"
    with pytest.raises(UserError, match="lora is the name of a method that ships"):
        register(replace(own, name="lora"))


def test_a_file_that_describes_a_method_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.py"
    file.write_text(described("own", learning_rate=0.5))
    config = TrainConfig(method=str(file))
    assert config.method == str(file) and config.learning_rate == 0.5
    assert method_named("own") is method_named(str(file)) and len(method_named("own").source) == 64
    monkeypatch.chdir(tmp_path)
    assert method_named("own.py") is method_named("own")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "describes no method where one is needed"),
        (described("a") + "TWO = replace(OWN, name='b')\n", "describes 2 methods where one is needed"),
        ("x = 1\nraise RuntimeError('no')\n", r"The method's file fails: RuntimeError: no \(line 2\)"),
        (described("lora"), "lora is the name of a method that ships"),
        (None, "No file"),
    ],
)
def test_a_file_that_describes_no_method_is_refused(text: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    trust_code(str(file))
    with pytest.raises(UserError, match=sentence):
        method_named(str(file))
    with pytest.raises(UserError, match=sentence):
        TrainConfig(method=str(file))


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(ValidationError, match="must be full, lora, qlora or prefix, or the Python file"):
        TrainConfig(method="lorra")
    with pytest.raises(UserError, match="Unknown method: 'lorra'") as caught:
        make_job(model="m", shape=find_model("llama-3.2-1b")[1], gpu=find_gpu("h100-sxm"), method="lorra")
    assert "did you mean lora? choices: full, lora, qlora, prefix" in (caught.value.next_step or "")
