"""Parsers of files that may be another person's, each with a valid file, and what a fuzzer does to it.

`tests/test_fuzz.py` runs a few hundred examples of each, `benchmarks/fuzz.py` as many as the minutes allow.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from tuneloop.core.errors import UserError
from tuneloop.models.chat.template import TemplateError

REFUSALS = (UserError, TemplateError)  # what a parser may raise


@dataclass(frozen=True)
class Parser:
    """A parser of a foreign file.

    Args:
        file: its name, within a folder of valid files.
        parse: reads it; is given the folder.
        form: `bytes`, `json`, `jsonl`, `yaml` or `header` (safetensors: a length, JSON, numbers): how it is mutated besides bytes.
    """

    file: str
    parse: Callable[[Path], object]
    form: str = "bytes"


def fuzzed(parser: Parser, folder: Path, seed: int) -> None:
    """Put a mutated file into the folder and parse it; whatever is not a refusal is raised.

    Args:
        folder: with the valid files; the mutated one is put back afterwards.
    """
    file = folder / parser.file
    valid = file.read_bytes()
    try:
        file.write_bytes(mutated(valid, parser.form, random.Random(seed)))
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            parser.parse(folder)
    except REFUSALS:
        pass
    finally:
        file.write_bytes(valid)


# --- mutations -------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
PIECES = (b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\x1b[2J", b"\r", b"\n", b'"', b"{", b"[" * 5000, b"}", b"]", b",", b"9" * 5000,
          b"1e999", b"NaN", b"\\ud800", b"../", b"\xef\xbb\xbf", b"\xff\xfe", b"GGUF", b"PK\x03\x04", b"\x1f\x8b\x08")  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """A value of JSON that a reader may not expect."""
    deep: Any = []
    for _ in range(rng.choice((5, 90, 3000))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        [None, True, False, 0, -1, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**400, 2**63, 2**31, -(2**63), "", "x", "0",
         "\ud800", "\0", "\x1b[31m\x9b2J", "x" * 100_000, "../../etc/passwd", "/etc/passwd", "http://127.0.0.1:1/", "2026-99-99",
         [], {}, [None], [[]], [1, "a"], {"": None}, {"a": {"b": []}}, [0] * 5000, deep]
    )  # fmt: skip


def mutated(valid: bytes, form: str, rng: random.Random) -> bytes:
    """The file after one to four changes: of its values where it has a structure, else of its bytes."""
    if form == "bytes" or rng.random() < 0.3:
        data = bytearray(valid)
        for _ in range(rng.randint(1, 4)):
            data = _bytes(data, rng)
        return bytes(data)
    if form == "header":
        (size,) = struct.unpack("<Q", valid[:8])
        header = _dumped(_changed(json.loads(valid[8 : 8 + size]), rng)).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(header)) + header + valid[8 + size :]
    if form == "yaml":
        changed = _changed(yaml.safe_load(valid), rng)
        try:
            return yaml.safe_dump(changed).encode("utf-8", "surrogatepass")
        except (RecursionError, ValueError):
            return b"a: " + b"[" * 3000
    if form == "jsonl":
        lines = valid.splitlines()
        path = rng.randrange(len(lines))
        lines[path] = _dumped(_changed(json.loads(lines[path]), rng)).encode("utf-8", "surrogatepass")
        return b"\n".join(lines)
    return _dumped(_changed(json.loads(valid), rng)).encode("utf-8", "surrogatepass")


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return "[" * 3000 + "]" * 3000


def _changed(value: Any, rng: random.Random) -> Any:
    for _ in range(rng.randint(1, 3)):
        value = _one_change(value, rng)
    return value


def _one_change(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.12:
        return odd_value(rng)
    if isinstance(value, list):
        changed = list(value)
        path = rng.randrange(len(changed))
        kind = rng.random()
        if kind < 0.1:
            del changed[path]
        elif kind < 0.2:
            changed.insert(path, odd_value(rng))
        elif kind < 0.25:
            changed = changed * rng.choice((2, 50))
        else:
            changed[path] = _one_change(changed[path], rng)
        return changed
    fields = dict(value)
    key = rng.choice(list(fields))
    kind = rng.random()
    if kind < 0.12:
        del fields[key]
    elif kind < 0.2:
        fields[rng.choice(["", "\x1b[0m", "x" * 1000, "__class__", key.upper(), "version"])] = odd_value(rng)
    elif kind < 0.25:
        other = rng.choice(list(fields))
        fields[key], fields[other] = fields[other], fields[key]
    else:
        fields[key] = _one_change(fields[key], rng)
    return fields


def _bytes(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:
        at = min(at, rng.randrange(300))  # headers are in front
    kind = rng.randrange(8)
    if kind == 0 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 1 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del data[at : at + rng.choice((1, 2, 8, 100, 10_000))]
    elif kind == 3:
        data[at:at] = data[at : at + rng.choice((1, 8, 100, 5000))]
    elif kind == 4:
        data[at:at] = rng.choice(PIECES)
    elif kind == 5:
        size, number = rng.choice((1, 2, 4, 8)), rng.choice(NUMBERS)
        data[at : at + size] = (number % 256**size).to_bytes(size, rng.choice(("little", "big")))
    elif kind == 6:
        del data[at:]
    else:
        data[at : at + 4] = rng.choice(PIECES)
    return data


# --- what is parsed --------------------------------------------------------------------------------


def _rows(name: str) -> Parser:
    def parse(folder: Path) -> object:
        from tuneloop.data.config import PrepareConfig
        from tuneloop.data.load_eval_file import read_whole
        from tuneloop.data.sources.read import read_records

        for _ in read_records([str(folder / name)]):
            pass
        return read_whole(str(folder / name), PrepareConfig())

    form = {".jsonl": "jsonl", ".json": "json"}.get(Path(name).suffix, "bytes")
    return Parser(name, parse, form)


def _record(name: str, module: str, kind: str) -> Parser:
    def parse(folder: Path) -> object:
        from importlib import import_module

        from tuneloop.records.record import read_record

        return read_record(getattr(import_module(module), kind), folder / name)

    return Parser(name, parse, "json")


def _command(name: str, form: str, *arguments: str) -> Parser:
    """A command on a folder: it may refuse in its own words, and not by a word of what should not happen."""

    def parse(folder: Path) -> object:
        from tuneloop.cli.console import UNEXPECTED
        from tuneloop.cli.main import main

        err, before = StringIO(), os.getcwd()
        with redirect_stderr(err):
            os.chdir(folder)
            try:
                main([*arguments, "--json", "-q"])
            finally:
                os.chdir(before)
        if UNEXPECTED in err.getvalue():
            raise AssertionError(err.getvalue())
        return None

    return Parser(name, parse, form)


def _model(folder: Path) -> object:
    from tuneloop.models.load import load_model

    model = load_model(str(folder / "model"), dtype="float32", device="cpu")
    return model.template.render([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}])


def _template(folder: Path) -> object:
    from tuneloop.models.chat.template import load_template

    return load_template(folder / "model").render(
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    )


def _adapter(folder: Path) -> object:
    from tuneloop.models.load import load_model
    from tuneloop.models.trained import load_trained

    load_trained(load_model(str(folder / "model"), dtype="float32", device="cpu"), folder / "run")
    return None


def _gguf_header(folder: Path) -> object:
    from tuneloop.models.files.gguf import read_header

    return read_header(folder / "model.gguf")


def _gguf(folder: Path) -> object:
    from tuneloop.models.files.names import convert

    shutil.rmtree(folder / "converted", ignore_errors=True)
    return convert(folder / "model.gguf", folder / "converted")


def _dataset(folder: Path) -> object:
    from tuneloop.data.dataset import load_dataset

    dataset = load_dataset(folder / "run" / "dataset", verify=False)
    return list(dataset.train), list(dataset.test)


def _router(folder: Path) -> object:
    from tuneloop.combine.route.router import load_router

    return load_router(folder / "router")


def _config(kind: str) -> Callable[[Path], object]:
    def parse(folder: Path) -> object:
        if kind == "recipe":
            from tuneloop.recipe import CONFIG, load_recipe

            return load_recipe(folder / "run" / CONFIG)
        if kind == "serve":
            from tuneloop.serving.server import serve_config

            return serve_config([str(folder / "serve.yaml")], [])
        if kind == "suite":
            from tuneloop.evaluation.gate.suite import load_suite

            return load_suite(folder / "suite.yaml")
        from tuneloop.improve.controller.command import load_project

        return load_project(folder / "project.yaml")

    return parse


def _keys(folder: Path) -> object:
    from tuneloop.serving.keys import read_keys

    return read_keys(folder)


def _batch(folder: Path) -> object:
    from tuneloop.serving.batch.file import BatchFile, InvalidBatch

    rows = BatchFile(folder / "batch.jsonl", "/v1/chat/completions")
    try:
        return list(rows.check()), rows.counts
    except InvalidBatch as error:
        return str(error)


def _verify(folder: Path) -> object:
    from tuneloop.registry.integrity import read_intact, verify

    verify(folder / "artifact")
    return read_intact(folder / "artifact")


def _checkpoint(folder: Path) -> object:
    from tuneloop.training.checkpoint import list_checkpoints, load_checkpoint

    assert list_checkpoints(folder / "checkpoints")
    return load_checkpoint(folder / "checkpoints", "k")


PARSERS = {
    "rows in JSON Lines": _rows("rows.jsonl"),
    "rows in messages": _rows("messages.jsonl"),
    "rows of preferences": _rows("preferences.jsonl"),
    "rows in JSON": _rows("rows.json"),
    "rows in CSV": _rows("rows.csv"),
    "rows in TSV": _rows("rows.tsv"),
    "rows in text": _rows("rows.txt"),
    "rows in Parquet": _rows("rows.parquet"),
    "rows in gzip": _rows("rows.jsonl.gz"),
    "rows in Zstandard": _rows("rows.jsonl.zst"),
    "a log of requests": _rows("requests.jsonl"),
    "prepare rows": _command("rows.jsonl", "jsonl", "prepare", "rows.jsonl", "-o", "prepared", "model=model", "data.allow_rejects=1"),
    "prepare messages": _command("messages.jsonl", "jsonl", "prepare", "messages.jsonl", "-o", "prepared-m", "model=model"),
    "prepare a log": _command("requests.jsonl", "jsonl", "prepare", "requests.jsonl", "-o", "prepared-r", "model=model"),
    "predictions": _command("predictions.jsonl", "jsonl", "evaluate", "--predictions", "predictions.jsonl", "--dataset", "run/dataset", "-o", "predicted"),
    "GGUF header": Parser("model.gguf", _gguf_header),
    "GGUF model": Parser("model.gguf", _gguf),
    "weights": Parser("model/model.safetensors", _model, "header"),
    "model configuration": Parser("model/config.json", _model, "json"),
    "tokenizer": Parser("model/tokenizer.json", _template, "json"),
    "tokenizer configuration": Parser("model/tokenizer_config.json", _template, "json"),
    "generation configuration": Parser("model/generation_config.json", _template, "json"),
    "chat template": Parser("model/chat_template.jinja", _template),
    "adapter weights": Parser("run/adapter/adapter_model.safetensors", _adapter, "header"),
    "adapter configuration": Parser("run/adapter/adapter_config.json", _adapter, "json"),
    "checkpoint": Parser("checkpoints/step-00000001.pt", _checkpoint),
    "data set manifest": Parser("run/dataset/dataset.json", _dataset, "json"),
    "data set rows": Parser("run/dataset/train.jsonl", _dataset, "jsonl"),
    "artifact manifest": Parser("artifact/artifact.json", _verify, "json"),
    "router": Parser("router/router.json", _router, "json"),
    "router numbers": Parser("router/router.safetensors", _router, "header"),
    "a run's recipe": Parser("run/config.yaml", _config("recipe"), "yaml"),
    "serve.yaml": Parser("serve.yaml", _config("serve"), "yaml"),
    "suite": Parser("suite.yaml", _config("suite"), "yaml"),
    "project": Parser("project.yaml", _config("project"), "yaml"),
    "keys": Parser("keys.json", _keys, "json"),
    "lines of a batch": Parser("batch.jsonl", _batch, "jsonl"),
    "report of run.json": _command("run/run.json", "json", "compare", "run"),
    "report of eval.json": _command("run/eval.json", "json", "compare", "run"),
    "report of samples": _command("run/samples.jsonl", "jsonl", "compare", "run"),
    "report of metrics": _command("run/metrics.jsonl", "jsonl", "compare", "run"),
    "report of plan.json": _command("run/plan.json", "json", "compare", "run"),
    "report of config.yaml": _command("run/config.yaml", "yaml", "compare", "run"),
    "report of baselines": _command("run/baselines/baselines.json", "json", "compare", "run"),
    "report of environment.json": _command("run/environment.json", "json", "compare", "run"),
    "report of dataset.json": _command("run/dataset/dataset.json", "json", "compare", "run"),
    "compare samples": _command("run/samples.jsonl", "jsonl", "compare", "run", "run/baselines/majority"),
    "compare eval.json": _command("run/eval.json", "json", "compare", "run", "run/baselines/majority"),
    "gate of eval.json": _command("run/eval.json", "json", "gate", "run", "--against", "run/baselines/majority"),
    "diff of dataset.json": _command("run/dataset/dataset.json", "json", "data", "diff", "run/dataset", "dataset2"),
    "check of rows": _command("run/dataset/train.jsonl", "jsonl", "data", "check", "run/dataset"),
    "verify": _command("artifact/artifact.json", "json", "models", "verify", "artifact"),
    "push": _command("artifact/artifact.json", "json", "models", "push", "artifact", "hub:a/b"),
    "export of run.json": _command("run/run.json", "json", "export", "run", "--format", "adapter", "-o", "exported"),
    "task of a run": _command("run/adapter/tuneloop.json", "json", "export", "run", "--format", "adapter", "-o", "exported"),
    "review of samples": _command("run/samples.jsonl", "jsonl", "review", "run", "-o", "review", "--no-serve"),
    "feedback": _command("feedback.jsonl", "jsonl", "feedback", "import", "feedback.jsonl", "--store", "store"),
    "reproduce --check": _command("run/schedule.json", "json", "models", "reproduce", "run", "--check"),
}  # fmt: skip


# --- valid files -----------------------------------------------------------------------------------


def write_seeds(folder: Path) -> None:
    """Valid files of every parser: rows, a tiny random Llama, a run of it with all that `tuneloop run` writes."""
    labels = ["late", "refund", "thanks"]
    rows = [{"text": f"Case {i}: {labels[i % 3]} please {i * 37 % 101}", "label": labels[i % 3]} for i in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text)
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    (folder / "rows.txt").write_text("\n\n".join(row["text"] for row in rows))
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = ["text,label".replace(",", mark), *(f'"{r["text"]}, ""quoted"""{mark}{r["label"]}' for r in rows)]
        (folder / name).write_text("\n".join(lines))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    _write_packed(folder, rows, text)
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]  # fmt: skip
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    _lines(folder / "messages.jsonl", [{"messages": [*turns, turns[1], call], "tools": tools, "id": f"m{i}"} for i in range(6)])  # fmt: skip
    _lines(folder / "preferences.jsonl", [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(6)])
    body = {"model": "m", "messages": turns[:2], "max_tokens": 3, "temperature": 0.0}
    _lines(folder / "requests.jsonl", [{"request": body, "response": {"choices": [{"message": turns[2], "finish_reason": "stop"}]}} for _ in range(6)])  # fmt: skip
    _lines(folder / "batch.jsonl", [{"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": body} for i in range(4)])  # fmt: skip
    _lines(folder / "feedback.jsonl", [{"version": 1, "id": f"f{i}", "request": f"r{i}", "kind": "thumbs", "value": 1, "time": "2026-01-01T00:00:00Z"} for i in range(3)])  # fmt: skip
    write_model(folder / "model")
    _write_gguf(folder / "model.gguf")
    _write_settings(folder)
    _write_run(folder)


def _lines(file: Path, values: list[Any]) -> None:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))


def _write_packed(folder: Path, rows: list[dict[str, str]], text: str) -> None:
    import pyarrow
    import pyarrow.parquet
    from backports import zstd

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "rows.jsonl.zst").write_bytes(zstd.compress(text.encode()))


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: Path) -> None:
    """A Llama of one layer of 16 with a tokenizer of bytes."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from tuneloop.models.nn.llama import Llama, LlamaConfig

    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    net = Llama(LlamaConfig.from_json(config))
    state = {
        name: torch.randn(value.shape) * 0.1 for name, value in net.state_dict().items() if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|im_end|>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257], "max_new_tokens": 20}))
    (folder / "chat_template.jinja").write_text(CHATML)


def _write_gguf(file: Path) -> None:
    import gguf
    import numpy as np

    letters = [chr(i) for i in range(33, 127)]
    tokens = [*letters, "<|im_end|>"]
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in (
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
    ):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [*[1] * len(letters), 3])
    writer.add_array("tokenizer.ggml.merges", [])
    writer.add_uint32("tokenizer.ggml.eos_token_id", len(letters))
    writer.add_string("tokenizer.chat_template", CHATML)
    tensors = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    tensors |= {
        f"blk.0.{name}": (32, 32)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    tensors |= {f"blk.0.{name}": (32,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in tensors.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, 0.5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_settings(folder: Path) -> None:
    serve = {"base": str(folder / "model"), "adapters": {"a": "run"}, "port": 8100, "log": {"content": "full"}}
    project = {"name": "p", "store": "store", "model": "m", "recipe": "recipe.yaml", "suite": "suite.yaml"}
    suite = {"version": 1, "name": "s", "margins": {"accuracy": 0.02}}
    for name, value in (("serve.yaml", serve), ("project.yaml", project), ("suite.yaml", suite)):
        (folder / name).write_text(yaml.safe_dump(value))


def _write_run(folder: Path) -> None:
    import numpy as np
    import torch

    from tuneloop.cli.main import main
    from tuneloop.combine.route.router import Router
    from tuneloop.records.router import RouterRecord, RouteTarget
    from tuneloop.serving.keys import add_key
    from tuneloop.training.checkpoint import _write

    def done(*arguments: str) -> None:
        out, err = StringIO(), StringIO()
        before = os.getcwd()
        os.chdir(folder)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = main([*arguments, "-q"])
        finally:
            os.chdir(before)
        assert status == 0, out.getvalue() + err.getvalue()

    done(
        "run",
        "rows.jsonl",
        "model=model",
        "output_dir=run",
        "train.epochs=1",
        "track.report_to=none",
        "baselines.zero_shot=false",
    )
    done("export", "run", "--format", "adapter", "-o", "artifact")
    shutil.copytree(folder / "run" / "dataset", folder / "dataset2")
    rows = map(json.loads, (folder / "run" / "dataset" / "test.jsonl").read_text().splitlines())
    _lines(folder / "predictions.jsonl", [{"id": row["id"], "prediction": row["label"]} for row in rows])
    add_key(folder, "team")
    (folder / "checkpoints").mkdir()
    _write(
        folder / "checkpoints" / "step-00000001.pt", {"key": "k", "step": 1, "x": torch.zeros(3), "l": [1, "a", None]}
    )
    record = RouterRecord(kind="logreg", features="words", exclusive=True, routes=[RouteTarget(name=n) for n in "ab"])
    numbers = {"mean": (4,), "rows": (3, 4), "outcomes": (3, 2), "weights": (4, 2), "bias": (2,), "centroids": (2, 4)}
    (folder / "router").mkdir()
    Router(record, {name: np.ones(shape, np.float32) for name, shape in numbers.items()}).save(folder / "router")
