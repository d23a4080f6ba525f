"""The main job on public data sets of four shapes, formats detected, as a table for benchmarks/records/results.md.

    python benchmarks/real_data.py [--data FOLDER] [--out FOLDER] [NAME ...]

Needs the data sets (not part of this repository) under FOLDER; each run folder is kept under --out, and a run that is there already
is only read. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

# Name -> source file and what is set besides the defaults, each with its reason.
JOBS: dict[str, tuple[str, list[str]]] = {
    # 30 rows a label as in the reference points, and 400 of the 1,000 test rows: label scoring is what takes the time here.
    "banking77": ("banking77/train.jsonl", ["data.limit_per_label=30", "evaluate.limit=400", "train.epochs=3"]),
    # Long free answers: two passes, answers cut at 200 tokens, 60 test rows.
    "alpaca": ("alpaca_en_demo/train.json", ["train.epochs=1", "evaluate.limit=60", "evaluate.max_new_tokens=200"]),
    "sharegpt-tools": ("sharegpt_toolcall_demo/train.json", ["train.epochs=2", "evaluate.max_new_tokens=160"]),
    # 1,710 conversations of some 500 tokens: a quarter of them, one pass.
    "taskmaster4": (
        "taskmaster4_chats/train.jsonl",
        ["data.limit=450", "train.epochs=1", "evaluate.max_new_tokens=120"],
    ),
}


def run_job(name: str, data: Path, out: Path) -> dict[str, object]:
    """Run one job unless its folder is complete, and return its summary."""
    source, settings = JOBS[name]
    folder = out / name
    if not (folder / "eval.json").is_file():
        command = [sys.executable, "-m", "tuneloop", "run", str(data / source), *settings, f"output_dir={folder}"]
        command += ["track.report_to=none"]
        print("$", " ".join(command[3:]), file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    parts = {"dataset": "dataset/dataset.json", "run": "run.json", "eval": "eval.json", "plan": "plan.json"}
    return {part: json.loads((folder / file).read_text()) for part, file in parts.items()}


def table(results: dict[str, dict]) -> str:  # type: ignore[type-arg]
    """Markdown: one line a system."""
    lines = ["| data | format found | rows (train/test) | system | metric | value | 95 % interval | p against tuned |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        manifest, evaluation = result["dataset"], result["eval"]
        metric = "accuracy" if evaluation["task"] == "classification" else "rougeL"
        path = [name, manifest["format"]["name"], f"{manifest['counts']['train']:,} / {evaluation['n']:,}"]
        systems = {**evaluation["baselines"], "tuned": evaluation["metrics"]}
        pairs = {c["a"]: c for c in evaluation["comparisons"] if c["metric"] == metric}
        for system, metrics in systems.items():
            if metric not in metrics:
                continue
            m = metrics[metric]
            p = f"{pairs[system]['p']:.2g} ({pairs[system]['verdict']})" if system in pairs else ""
            cells = [*path, system, metric, f"{m['value']:.3f}", f"{m['low']:.3f} to {m['high']:.3f}", p]
            lines.append("| " + " | ".join(cells) + " |")
            path = ["", "", ""]
    lines += [
        "",
        "| data | steps | minutes planned | minutes taken | GiB planned | GiB taken | tokens/s | validation loss | perplexity on test |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        r, e = result["run"], result["eval"]
        before = e["baselines"].get("zero-shot", {}).get("perplexity", {}).get("value")
        after = e["metrics"].get("perplexity", {}).get("value")
        perplexity = f"{before:.2f} -> {after:.2f}" if before and after else ""
        planned = r["predicted"]
        cells = [
            name, f"{r['steps']:,}", f"{planned['minutes']:.1f} ({planned['low']:.1f} to {planned['high']:.1f})", f"{r['seconds'] / 60:.1f}",
            f"{planned['peak_gib']:.1f}", f"{r['peak_memory_gib']:.1f}", f"{r['tokens_per_second']:,.0f}",
            f"{r['first_val_loss']:.3f} -> {r['best_val_loss']:.3f}", perplexity,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(JOBS), help=f"of {', '.join(JOBS)}")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs") / "real-data")
    options = parser.parse_args()
    missing = [JOBS[name][0] for name in options.names if not (options.data / JOBS[name][0]).is_file()]
    if missing:
        sys.exit(f"{missing[0]} is not under {options.data}: give the folder of the data sets with --data")
    print(table({name: run_job(name, options.data, options.out) for name in options.names}))


if __name__ == "__main__":
    main()
