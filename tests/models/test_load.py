"""What loading takes, and what it sets up for the process."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.models.load import SIZES, load_model, load_tokenizer, opened, random_model, weight_files

# Multiplies rows of 300 lengths, as training on rows of ever new lengths does, and prints the MiB that the heap then holds.
LENGTHS = """
import ctypes, torch
from tuneloop.core.threads import use_threads
use_threads()
class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks used free top".split()]
libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Heap
weight = torch.ones(64, 64, dtype=torch.bfloat16)
torch.ones(8, 64, dtype=torch.bfloat16) @ weight
before = libc.mallinfo2().used
for length in range(9, 309):
    torch.ones(length, 64, dtype=torch.bfloat16) @ weight
print((libc.mallinfo2().used - before) / 2**20)
"""


def heap_growth(**environment: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", LENGTHS], env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no glibc that tells what the heap holds: {done.stderr.splitlines()[-1]}")
    return float(done.stdout)


def test_rows_of_ever_new_lengths_do_not_fill_the_memory() -> None:
    unbounded = heap_growth(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    if unbounded < 20:
        pytest.skip("this processor multiplies bf16 without keeping anything for each shape")
    assert heap_growth() < unbounded / 2


def own_mib() -> float:
    """MiB that this process shares with no other and that no file holds."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.is_file():
        pytest.skip("this system does not say what memory is a process's own")
    return int(re.findall(r"^Anonymous:\s+(\d+)", rollup.read_text(), re.MULTILINE)[0]) / 1024


def test_weights_in_the_dtype_of_their_file_are_mapped_so_that_processes_share_them(
    tiny_llama: Path, tmp_path: Path
) -> None:
    config = {**SIZES["tiny"], "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "head_dim": 128}
    config["vocab_size"] = read_json(tiny_llama / "config.json")["vocab_size"]
    made = random_model(config, load_tokenizer(str(tiny_llama)), dtype=torch.bfloat16, device="cpu").net.state_dict()
    save_file(made, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, tmp_path / name)
    size = sum(tensor.numel() * 2 for tensor in made.values()) / 2**20
    load_tokenizer(str(tmp_path))  # what reading a tokenizer takes is not counted
    before = own_mib()
    model = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    assert all(torch.equal(tensor, made[name]) for name, tensor in model.net.state_dict().items())
    assert size > 40 and own_mib() - before < size / 4
    converted = load_model(str(tmp_path), dtype="float32", device="cpu")
    assert (
        converted.head.dtype == torch.float32
    )  # in memory of its own; how much is new depends on what was freed before


def test_code_of_a_models_folder_is_never_run(tiny_llama: Path, tmp_path: Path) -> None:
    """An architecture that the folder itself brings: Transformers would ask, or import it."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="'evil' is neither one of llama"):
        load_model(str(folder), dtype="float32")
    assert not (tmp_path / "canary").exists()


def test_pickled_weights_are_not_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "canary"), "w")

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Evil()}))
    for kind in ("llama", "qwen2", "granite"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": kind}))
        with pytest.raises(UserError):
            load_model(str(folder), dtype="float32")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_names_weights_of_its_folder_only(name: object, tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="index names"):
        weight_files(folder)


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 10**9}, {"vocab_size": 2**60}, {"hidden_size": "64"}, {"num_attention_heads": 0}, {"head_dim": -1},
     {"rope_parameters": ["x"]}, {"rope_parameters": {"rope_type": "llama3"}}, {"num_key_value_heads": 3},
     {"model_type": "granite", "num_hidden_layers": 10**8}],
)  # fmt: skip
def test_a_configuration_that_can_not_be_is_refused_at_once(
    change: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError):
        load_model(str(folder), dtype="float32")


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"]
)
def test_a_missing_weight_is_named(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"Damaged model: {name} is missing"):
        load_model(str(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_contradicts_the_configuration_is_refused(tied: bool, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    config, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    embedding = state["model.embed_tokens.weight"]
    heads = {"lm_head.weight": embedding + 1} if tied else {}
    rest = {key: weight for key, weight in state.items() if key != "lm_head.weight"}
    save_file(rest | heads, folder / "model.safetensors")
    with pytest.raises(UserError, match="embedding") as error:
        load_model(str(folder), dtype="float32")
    assert error.value.where.endswith("config.json") and "tie_word_embeddings" in error.value.next_step
    if tied:  # a copy is no contradiction
        save_file({**rest, "lm_head.weight": embedding.clone()}, folder / "model.safetensors")
        load_model(str(folder), dtype="float32")


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    state = load_file(folder / "model.safetensors")
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    fewer = {key: weight[:40].clone() if key in ends else weight for key, weight in state.items()}
    save_file(fewer, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    with pytest.raises(UserError, match="tokens and the model's embedding 40"):
        load_model(str(folder), dtype="float32")


def test_weights_of_another_family_than_the_configuration_says_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    save_file({**state, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"hold model\.layers\.0\.self_attn\.q_proj\.bias, which a 'llama' model lacks"):
        load_model(str(folder), dtype="float32")
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, folder / "model.safetensors")
    load_model(str(folder), dtype="float32")  # as old versions wrote it


def test_a_header_of_a_million_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"layer.{i}": entry for i in range(400_000)}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="list of tensors has"), opened(file):
        pass
