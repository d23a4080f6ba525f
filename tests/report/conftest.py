"""A made-up, whole run folder: long German label names, 77 labels, long answers, hostile text."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

VERBS = [
    "gesperrt",
    "verloren",
    "abgelehnt",
    "doppelt_belastet",
    "noch_nicht_eingetroffen",
    "falscher_betrag",
    "stornieren",
]
NOUNS = [
    "karte",
    "rueckerstattung",
    "ueberweisung_ins_ausland",
    "kontaktloses_bezahlen",
    "identitaetspruefung",
    "bargeldabhebung",
    "wechselkurs",
    "lastschrift",
    "telefonnummer_aendern",
    "zwei_faktor_anmeldung",
    "dauerauftrag",
]
LABELS = [f"{noun}_{verb}" for noun in NOUNS for verb in VERBS]  # 77
HOSTILE = "<script>alert('x')</script> & \"quoted\" \x1b[31mred\x1b[0m \ud800 ﷽ 漢字かな"


def metrics_lines(rng: random.Random, steps: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.4 + 3.2 * math.exp(-step / (steps / 5)) + rng.gauss(0, 0.18)
        records.append(
            {
                "step": step,
                "epoch": round(3 * step / steps, 3),
                "loss": round(max(loss, 0.05), 4),
                "learning_rate": 5e-4 * (1 - step / steps),
                "grad_norm": round(abs(rng.gauss(1, 0.3)), 3),
                "tokens": 1000 + rng.randrange(100),
                "tokens_per_second": 310 + rng.randrange(30),
                "seconds": round(step * 0.9, 2),
                "memory_gib": 1.27,
            }
        )
        if step % (steps // 6) == 0:
            val = 0.55 + 2.6 * math.exp(-step / (steps / 5)) + (0.1 if step > steps * 0.8 else 0)
            records.append({"step": step, "val_loss": round(val, 4), "best": step <= steps * 0.8, "seconds": 3.1})
    return records


def score(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def classification_eval(rng: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def both(accuracy: float, half: float = 0.035) -> dict[str, Any]:
        return {
            "accuracy": score(accuracy, half),
            "macro_f1": score(accuracy - 0.021, half + 0.006),
            "weighted_f1": score(accuracy, half),
        }

    baselines = {
        "zero-shot": both(0.113),
        "zero-shot calibrated": both(0.192),
        "few-shot": both(0.246),
        "few-shot calibrated": both(0.301),
        "tf-idf + logistic regression": both(0.844, 0.028),
        "MiniLM + logistic regression": both(0.893, 0.024),
    }
    comparisons = [
        {
            "a": name,
            "b": "tuned",
            "metric": metric,
            "delta": 0.871 - b[metric]["value"],
            "low": 0.871 - b[metric]["value"] - 0.04,
            "high": 0.871 - b[metric]["value"] + 0.04,
            "p": 0.0000004 if "shot" in name else 0.034 if "tf" in name else 0.211,
            "verdict": "better" if "Mini" not in name else "not enough evidence",
        }
        for name, b in baselines.items()
        for metric in ("accuracy", "macro_f1")
    ]
    samples = []
    for i in range(500):
        label = rng.choice(LABELS)

        def guess(right: float, label: str = label) -> str:
            return label if rng.random() < right else rng.choice(LABELS)

        prompt = (
            f"Guten Tag, meine {label.replace('_', ' ')}. Ich habe es am {i % 28 + 1}. März gemerkt und bitte um Hilfe."
        )
        if i == 50:
            prompt = HOSTILE
        if i == 150:
            prompt = "Sehr langer Text ohne Ende. " * 400
        samples.append(
            {
                "id": f"r{i:04d}",
                "prompt": prompt,
                "reference": label,
                "prediction": guess(0.87),
                "label": label,
                "valid": True,
                "scores": {"accuracy": 1.0},
                "baselines": {
                    "zero-shot": guess(0.11) if i % 7 else "",
                    "few-shot": guess(0.25),
                    "zero-shot calibrated": guess(0.19),
                },
            }
        )
    evaluation = {
        "version": 1,
        "model": "smollm2-135m",
        "dataset": "banking-0123456789ab",
        "split": "test",
        "n": 500,
        "task": "classification",
        "metrics": both(0.871, 0.029),
        "baselines": baselines,
        "comparisons": comparisons,
        "invalid": 0,
        "notes": ["Choice scoring over 77 labels, by log likelihood a token."],
        "words": [
            "The tuned model is better than the best prompting (few-shot calibrated): "
            "accuracy 0.87 against 0.30, +0.57 [0.53, 0.61], p < 0.001.",
            "MiniLM with logistic regression does as well (0.89, p = 0.211) and costs next to nothing: "
            "use it unless you need generated text.",
            "About 1,900 test rows would settle which of the two is better.",
        ],
        "costs": {
            name: {"seconds": 41.0 + i, "usd": 0.0006, "prompt_tokens": 9000, "tokens": 900}
            for i, name in enumerate([*baselines, "tuned"])
        },
    }
    return evaluation, samples


def generation_eval(rng: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def three(queue: float, rouge: float, chrf: float) -> dict[str, Any]:
        return {
            "queue.accuracy": score(queue, 0.06),
            "queue.macro_f1": score(queue - 0.05, 0.08),
            "rougeL": score(rouge, 0.021),
            "chrf": score(chrf, 2.1),
        }

    baselines = {"zero-shot": three(0.11, 0.132, 18.2), "few-shot": three(0.34, 0.271, 29.9)}
    comparisons = [
        {
            "a": n,
            "b": "tuned",
            "metric": "queue.accuracy",
            "delta": 0.91 - b["queue.accuracy"]["value"],
            "low": 0.5,
            "high": 0.8,
            "p": 0.0005,
            "verdict": "better",
        }
        for n, b in baselines.items()
    ]
    samples = []
    for i in range(64):
        queue = rng.choice(["Zahlungen", "Kartenservice", "Identitätsprüfung"])
        card = (
            f"Queue: {queue}\nIssue: Überweisung {i} ist seit drei Tagen nicht eingegangen, der Kunde bittet um "
            "Nachforschung beim Empfängerinstitut.\n"
            "Resolution: Nachforschungsauftrag stellen; Kunden binnen zwei Werktagen informieren."
        )
        samples.append(
            {
                "id": f"g{i}",
                "prompt": HOSTILE
                if i == 6
                else f"Hallo, ich habe am Montag {i} Euro überwiesen, aber das Geld ist nie angekommen. Was nun? " * 2,
                "reference": card,
                "prediction": card.replace("Kunden", "die Kundin"),
                "label": None,
                "scores": {"rougeL": 0.7 + rng.random() / 5, "chrf": 60 + rng.random() * 20},
                "baselines": {
                    "zero-shot": "I'm sorry to hear that. " * 12,
                    "few-shot": card.split("\n")[0] + "\nIssue: <b>Geld</b>",
                },
            }
        )
    evaluation = {
        "version": 1,
        "model": "smollm2-135m",
        "dataset": "tickets-0123456789ab",
        "split": "test",
        "n": 64,
        "task": "generation",
        "metrics": three(0.91, 0.563, 57.4),
        "baselines": baselines,
        "comparisons": comparisons,
        "notes": [],
        "words": [
            "The tuned model is better than few-shot prompting: queue accuracy 0.91 against 0.34, "
            "+0.57 [0.44, 0.69], p < 0.001."
        ],
    }
    return evaluation, samples


def dataset_manifest(rng: random.Random, kind: str) -> dict[str, Any]:
    labels = {label: 20 + int(90 * rng.random() ** 2) for label in LABELS} if kind == "classification" else {}
    rows = {"train": sum(labels.values()) or 512, "val": 64, "test": 500 if labels else 64}
    kept = sum(rows.values())
    return {
        "version": 1,
        "id": "banking-0123456789ab" if labels else "tickets-0123456789ab",
        "name": "banking77" if labels else "tickets",
        "hash": "0123456789ab" * 5 + "0123",
        "key": "k",
        "task": kind,
        "format": {"name": "text_label", "columns": {"text": "text"}, "reason": "two columns"},
        "labels": list(labels),
        "sources": [
            {"path": "data/tickets_mit_einem_sehr_langen_dateinamen_2024.jsonl", "sha256": "ab" * 32, "rows": kept + 91}
        ],
        "config": {"max_length": 512},
        "seed": 0,
        "model": "smollm2-135m",
        "counts": {"read": kept + 91, "kept": kept, "rejected": 91, **rows},
        "rejected": {"exact_duplicate": 71, "broken_json": 12, "empty_output": 7, "too_long": 1},
        "repaired": {"merged_turns": 4},
        "splits": {
            n: {
                "path": f"{n}.jsonl",
                "rows": r,
                "sha256": "cd" * 32,
                "labels": labels if n == "train" else {},
                "tokens": {
                    "total": r * 61,
                    "supervised": r * 11,
                    "min": 22,
                    "p50": 58,
                    "p90": 117,
                    "max": 431,
                    "mean": 61.2,
                },
            }
            for n, r in rows.items()
        },
        "checks": [
            {"name": "enough_rows", "level": "ok", "message": f"{rows['train']} training rows", "rows": rows["train"]},
            {
                "name": "label_balance",
                "level": "warn",
                "message": "Label wechselkurs_gesperrt has 20 rows, the most frequent 109.",
                "rows": 20,
            },
        ],
    }


def build_run(folder: Path, kind: str = "classification", steps: int = 240) -> Path:
    """Write a run folder as the stages would."""
    rng = random.Random(7)
    (folder / "dataset").mkdir(parents=True)
    evaluation, samples = classification_eval(rng) if kind == "classification" else generation_eval(rng)

    def write(name: str, value: Any) -> None:
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")

    name = "banking77" if kind == "classification" else "tickets"
    config = {
        "version": 1,
        "name": name,
        "model": "smollm2-135m",
        "seed": 0,
        "train": {"learning_rate": 5e-4, "epochs": 3.0},
        "evaluate": {"samples": 5},
        "data": {"instruction": "Ordne die Nachricht zu. " * 12},
        "track": {"report_to": "mlflow", "experiment": "tuneloop"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    write("dataset/dataset.json", dataset_manifest(rng, kind))
    write(
        "plan.json",
        {
            "version": 1,
            "model": "smollm2-135m",
            "method": "lora",
            "gpu": "cpu",
            "gpus": 1,
            "fits": True,
            "memory": {
                "peak_gib": 1.42,
                "capacity_gib": 15.6,
                "phase": "backward",
                "terms": {
                    "weights": 0.5,
                    "activations": 0.61,
                    "logits": 0.2,
                    "optimizer": 0.04,
                    "gradients": 0.02,
                    "framework": 0.05,
                },
            },
            "time": {"hours": 0.066, "low": 0.05, "high": 0.09, "tokens_per_second": 320},
            "cost": {"usd": 0.0033, "low": 0.0025, "high": 0.0045, "breakdown": {}},
            "assumptions": ["two shared cores at the speed measured before the first step"],
            "alternatives": [{"change": "gpu=l4", "why": "it has more memory"}],
            "trainable_parameters": 4884480,
            "total_parameters": 139399488,
            "steps": steps,
        },
    )
    write(
        "run.json",
        {
            "version": 1,
            "id": folder.name,
            "key": "k",
            "status": "finished",
            "method": "lora",
            "model": "smollm2-135m",
            "dataset": "banking-0123456789ab",
            "steps": steps,
            "epochs": 3.0,
            "best_step": steps // 6 * 4,
            "best_val_loss": 0.643,
            "stopped": "early",
            "trainable_parameters": 4884480,
            "tokens": 251234,
            "seconds": 252.0,
            "tokens_per_second": 331.0,
            "peak_memory_gib": 1.3,
            "usd": 0.0035,
            "predicted": {"minutes": 4.0, "low": 3.1, "high": 5.2, "peak_gib": 1.42, "usd": 0.0033},
            "adapter": "adapter",
        },
    )
    write(
        "environment.json",
        {
            "version": 1,
            "python": "3.11.9",
            "platform": "Linux-6.8.0-x86_64-with-glibc2.39",
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_gib": 7.8,
            "gpu": [],
            "git_commit": "a" * 40,
            "tuneloop": "0.1.0",
            "packages": {"torch": "2.13.0", "transformers": "5.0.0", "peft": "0.19.0", "tokenizers": "0.23.0"},
        },
    )
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in metrics_lines(rng, steps)), encoding="utf-8"
    )
    write("eval.json", evaluation)
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    (folder / "adapter").mkdir()
    write("adapter/adapter_config.json", {"peft_type": "LORA", "r": 16})
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a whole run folder: `make_run("generation", steps=60)`."""

    def make(kind: str = "classification", steps: int = 240) -> Path:
        return build_run(tmp_path / "runs" / f"{kind}-4f2a91", kind, steps)

    return make


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs a headless Chromium; skipped where there is none")
