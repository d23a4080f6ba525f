"""How fast rows are evaluated: choice scoring over 30 and 77 labels (banking77) and 250 summaries (dialogsum).

    python benchmarks/evaluate.py [choice30 choice77 summaries] [--run RUN] [--peers transformers llama.cpp]

Next to it, in the same run: the plain way (Transformers `generate`, batches of 8 in the order of the file) and, where xllamacpp is
installed, llama.cpp's server, 8 requests at once, on the same weights in the same precision. Peers answer the first
rows only (--peer-rows): what counts is rows a second. Peers write a label freely, which is less work than scoring them all.
llama.cpp logs a lot: send stderr elsewhere (2>/dev/null).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.device import peak_memory, reset_peak_memory
from tuneloop.core.threads import use_threads
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.inference.local.target import LocalTarget
from tuneloop.models.load import Model, load_model
from tuneloop.pipeline.answers.asking import Asking, ask
from tuneloop.records.rows import Dataset, Message, Row

MODEL = "smollm2-135m"
CLASSIFY = "Classify the text. Answer with the label only."
SUMMARISE = "Summarise the dialogue in one to three sentences."
SUMMARY_TOKENS = 80


@dataclass(frozen=True)
class Job:
    """Rows to answer, and the longest answer in tokens."""

    name: str
    data: Dataset
    limit: int


def jobs(folder: Path, wanted: Sequence[str]) -> list[Job]:
    """The jobs asked for, from the shared data."""
    found = []
    for name in wanted:
        if name.startswith("choice"):
            found.append(_choice(folder / "banking77" / "test.jsonl", int(name.removeprefix("choice")), name))
        else:
            records = [json.loads(line) for line in (folder / "dialogsum" / "test_part1.jsonl").open()][:250]
            rows = [_row(str(i), SUMMARISE, r["dialogue"], r["references"][0]) for i, r in enumerate(records)]
            found.append(Job(name, _dataset("generation", rows, None), SUMMARY_TOKENS))
    return found


def _choice(file: Path, labels: int, name: str) -> Job:
    records = [json.loads(line) for line in file.open()]
    kept = sorted({r["label"] for r in records})[:labels]
    records = [r for r in records if r["label"] in set(kept)]
    drawn = random.Random(0).sample(records, min(500, len(records)))
    rows = [_row(str(i), CLASSIFY, r["text"], r["label"]) for i, r in enumerate(drawn)]
    return Job(name, _dataset("classification", rows, kept), 16)


def _row(name: str, system: str, text: str, answer: str) -> Row:
    turns: list[Message] = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return Row(name, [*turns, {"role": "assistant", "content": answer}], answer)


def _dataset(task: str, rows: list[Row], labels: list[str] | None) -> Dataset:
    return Dataset("benchmark", {"id": "b", "task": task, "labels": labels, "config": {}}, [], [], rows)


# --- the ways ----------------------------------------------------------------------------------


def ours(model: Model, job: Job, rows: Sequence[Row]) -> int:
    """`tuneloop evaluate`'s answers; returns the tokens written."""
    config = EvaluateConfig(max_new_tokens=job.limit)
    # Perplexity of the references is measured as well: it is no part of answering, and the peers don't do it.
    prompts = [row.prompt for row in rows]
    return ask(LocalTarget.of(model), job.data, rows, config, Asking(prompts=prompts))[""].tokens


def plain_transformers(model: Model) -> Callable[[Job, Sequence[Row]], int]:
    """Transformers' `generate` in batches of 8, as most scripts do it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.folder, padding_side="left")
    net = AutoModelForCausalLM.from_pretrained(model.folder, dtype=model.head.dtype).eval()
    pad = model.template.pad_id

    def answer(job: Job, rows: Sequence[Row]) -> int:
        written = 0
        with torch.inference_mode():
            for start in range(0, len(rows), 8):
                prompts = [model.template.prompt_ids(row.prompt) for row in rows[start : start + 8]]
                batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
                out = net.generate(
                    **batch, max_new_tokens=job.limit, do_sample=False, pad_token_id=pad, eos_token_id=list(model.template.end_ids)
                )  # fmt: skip
                new = out[:, batch["input_ids"].shape[1] :]
                written += int((new != pad).sum())
        return written

    return answer


def llama_cpp_server(model: Model, scratch: Path) -> Callable[[Job, Sequence[Row]], int]:
    """llama.cpp's server from the wheel xllamacpp, asked through our own client, without its cache."""
    import xllamacpp

    from tuneloop.inference.endpoint import Endpoint
    from tuneloop.inference.openai.target import complete
    from tuneloop.inference.request import Request

    params = xllamacpp.CommonParams()
    params.model.path = str(same_precision_gguf(model, scratch / "model.gguf"))
    params.n_ctx, params.n_parallel = 8 * 1024, 8
    cores = len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores
    params.port, params.warmup = 0, False
    server = xllamacpp.Server(params)
    endpoint = Endpoint(server.listening_address, MODEL, timeout=300)

    def answer(job: Job, rows: Sequence[Row]) -> int:
        replies = complete(endpoint, [Request(row.prompt, max_new_tokens=job.limit) for row in rows])
        failed = [reply.error for reply in replies if reply.error]
        if failed:
            sys.exit(f"llama.cpp's server failed: {failed[0]}")
        return sum(reply.completion_tokens for reply in replies)

    answer.server = server  # type: ignore[attr-defined]  # it lives as long as the function
    return answer


def same_precision_gguf(model: Model, file: Path) -> Path:
    """The packaged GGUF with its tensors in the precision that our model computes in."""
    import gguf

    from tuneloop.models.files.names import packaged_gguf

    source = packaged_gguf()
    assert source is not None
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(file, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        part = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=part)
    bf16 = "bfloat16" in str(model.head.dtype)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if bf16 and values.ndim > 1:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


# --- measuring ---------------------------------------------------------------------------------


def measure(answer: Callable[[Job, Sequence[Row]], int], job: Job, rows: Sequence[Row]) -> dict[str, Any]:
    """Rows a second after a warm-up on two rows that don't count."""
    answer(job, job.data.test[-2:])
    reset_peak_memory()
    started = time.perf_counter()
    tokens = answer(job, rows)
    seconds = time.perf_counter() - started
    speed = len(rows) / seconds
    return {"rows": len(rows), "seconds": seconds, "rows_a_second": speed, "tokens": tokens, "peak": peak_memory()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["choice30", "choice77", "summaries"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument(
        "--run", type=Path, help="measure this run's tuned model, without peers: they have other weights"
    )
    parser.add_argument("--peers", nargs="*", default=["transformers", "llama.cpp"])
    parser.add_argument("--rows", type=int, default=500, help="rows of each job for our side")
    parser.add_argument("--peer-rows", type=int, default=64)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"the data are not under {options.data}: give their folder with --data")
    threads = use_threads()
    model = load_model(MODEL)
    if options.run:
        from tuneloop.models.trained import load_trained

        load_trained(model, options.run)
        options.peers = []
    print(
        f"{threads} threads, {model.head.dtype}\n\n| job | way | rows | rows/s | tokens written | peak GiB | ours is |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        todo = jobs(options.data, options.parts)
        # Our own first: the process's memory is then that of our model alone.
        own = {
            job.name: measure(lambda job, rows: ours(model, job, rows), job, job.data.test[: options.rows])
            for job in todo
        }
        peers: dict[str, Callable[[Job, Sequence[Row]], int]] = {}
        if "transformers" in options.peers and importlib.util.find_spec("transformers"):
            peers["Transformers generate, batch 8"] = plain_transformers(load_model(MODEL))
        if "llama.cpp" in options.peers and importlib.util.find_spec("xllamacpp"):
            peers["llama.cpp server, 8 slots"] = llama_cpp_server(model, Path(scratch))
        for job in todo:
            show(job, "tuneloop", own[job.name], None)
            for name, peer in peers.items():
                show(job, name, measure(peer, job, job.data.test[: options.peer_rows]), own[job.name])
    sys.stdout.flush()
    os._exit(0)  # the server's threads don't end by themselves


def show(job: Job, way: str, found: dict[str, Any], own: dict[str, Any] | None) -> None:
    """One line of the table."""
    ratio = "" if own is None else f"{own['rows_a_second'] / found['rows_a_second']:.1f} times as fast"
    peak = f"{found['peak']:.2f}" if own is None else ""  # of the process: besides us it holds the peers' models too
    speed, tokens = f"{found['rows_a_second']:.1f}", f"{found['tokens']:,}"
    print(f"| {job.name} | {way} | {found['rows']} | {speed} | {tokens} | {peak} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
