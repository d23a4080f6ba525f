"""What `data_speed.py` runs in a process and environment of its own: `prepare`, or the same steps in datatrove or data-juicer.

    python data_peers.py tuneloop|datatrove|data-juicer SOURCE OUT WORKERS GRAM LANGUAGE_MODEL

The steps that the peers share with `prepare`, with the same thresholds: read JSON Lines, repair encodings (ftfy), replace e-mail and IP addresses, tell the language
(fastText), drop near duplicates (MinHash, Jaccard 0.8 on groups of GRAM words), write. Writes OUT/facts.json: the seconds
of the work, imports left out, the rows kept, and the seconds of each step summed over its processes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

BANDS, ROWS = 11, 11  # (1/11)^(1/11) = 0.80, from 121 hashes; data-juicer picks its own of 128 for the same threshold


def tuneloop(source: Path, out: Path, workers: int, gram: int, model: str) -> dict[str, object]:
    """Run the whole stage as the command does: besides the peers' steps the checks, the splits and the report."""
    from tuneloop.data.config import PrepareConfig
    from tuneloop.data.prepare import prepare_dataset
    from tuneloop.models.load import load_tokenizer
    from tuneloop.pipeline.prepare import measure_with
    from tuneloop.report.data.html import write_data_report

    measure = measure_with(load_tokenizer("smollm2-135m"))
    config = PrepareConfig(
        sources=[str(source)], workers=workers, max_length=8192
    )  # the peers drop nothing for its length
    start = time.perf_counter()
    dataset = prepare_dataset(config, name="speed", seed=0, out=out, measure=measure)
    write_data_report(out)
    took = time.perf_counter() - start
    return {"seconds": took, "kept": dataset.manifest["counts"]["kept"], "steps": {}}


def datatrove(source: Path, out: Path, workers: int, gram: int, model: str) -> dict[str, object]:
    """Run datatrove's local executors one after the other, as its own example of deduplication does."""
    os.environ["HF_ASSETS_CACHE"] = str(out / "assets")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import LanguageFilter
    from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    language = LanguageFilter(label_only=True)
    language.model.MODEL_URL = model  # instead of the download
    shards = out / "shards"  # a file is read by one process only
    shards.mkdir(parents=True)
    lines = source.read_bytes().splitlines(keepends=True)
    for number in range(workers):
        (shards / f"{number}.jsonl").write_bytes(b"".join(lines[number::workers]))
    config = MinhashConfig(n_grams=gram, num_buckets=BANDS, hashes_per_bucket=ROWS)
    clean, signatures, buckets, remove, final = (
        str(out / name) for name in ("clean", "signatures", "buckets", "remove", "final")
    )
    plain = {"compression": None}
    steps = [
        (workers, [JsonlReader(str(shards)), FTFYFormatter(), PIIFormatter(), language, JsonlWriter(clean, **plain)]),
        (workers, [JsonlReader(clean), MinhashDedupSignature(signatures, config=config)]),
        (BANDS, [MinhashDedupBuckets(signatures, buckets, config=config)]),
        (1, [MinhashDedupCluster(buckets, remove, config=config)]),
        (workers, [JsonlReader(clean), MinhashDedupFilter(remove), JsonlWriter(final, **plain)]),
    ]  # fmt: skip
    start = time.perf_counter()
    spent: dict[str, float] = {}
    for number, (tasks, pipeline) in enumerate(steps):
        executor = LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=workers, logging_dir=str(out / "logs" / str(number))
        )
        for block in executor.run().stats:
            spent[block.name] = spent.get(block.name, 0.0) + block.time_stats.total
    took = time.perf_counter() - start
    kept = sum(path.read_bytes().count(b"\n") for path in Path(final).iterdir())
    return {"seconds": took, "kept": kept, "steps": spent}


def data_juicer(source: Path, out: Path, workers: int, gram: int, model: str) -> dict[str, object]:
    """Run data-juicer's default executor on a configuration file."""
    out.mkdir(parents=True)
    models = out / "models"
    models.mkdir()
    (models / "lid.176.bin").write_bytes(Path(model).read_bytes())
    os.environ["DATA_JUICER_MODELS_CACHE"] = str(models)
    os.environ["DATA_JUICER_CACHE_HOME"] = str(out / "cache")
    os.environ["HF_DATASETS_CACHE"] = str(out / "hf")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor
    from loguru import logger

    config = out / "config.json"  # JSON is YAML
    config.write_text(json.dumps({
        "project_name": "speed", "dataset_path": str(source), "export_path": str(out / "final.jsonl"), "np": workers,
        "text_keys": "text", "open_tracer": False,
        "process": [
            {"fix_unicode_mapper": {}}, {"clean_email_mapper": {}}, {"clean_ip_mapper": {}},
            {"language_id_score_filter": {"min_score": 0.0}},
            {"document_minhash_deduplicator": {
                "tokenization": "space", "window_size": gram, "num_permutations": 128, "jaccard_threshold": 0.8}},
        ],
    }))  # fmt: skip
    settings = init_configs(["--config", str(config)])
    spent: dict[str, float] = {}
    said: list[str] = []
    logger.add(lambda message: said.append(str(message)), level="INFO")
    start = time.perf_counter()
    DefaultExecutor(settings).run()
    took = time.perf_counter() - start
    for line in said:
        if found := re.search(r"OP \[(\w+)\] Done in ([\d.]+)s", line):
            spent[found[1]] = float(found[2]) * workers
    kept = (out / "final.jsonl").read_bytes().count(b"\n")
    return {"seconds": took, "kept": kept, "steps": spent}


def main() -> None:
    """Command line."""
    peer, source, out, workers, gram, model = sys.argv[1:]
    work = {"tuneloop": tuneloop, "datatrove": datatrove, "data-juicer": data_juicer}[peer]
    facts = work(Path(source), Path(out), int(workers), int(gram), model)
    (Path(out) / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
