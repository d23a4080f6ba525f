"""Records the curves that the monitors are tested on: real runs of smollm2-135m, healthy ones and ones spoiled on purpose.

    python tests/training/make_curves.py --data FOLDER [NAME ...]

writes `curves/NAME.jsonl` next to this file: a head with the settings, then the records of `metrics.jsonl`. About a minute
of one core each. The data sets (banking77, dialogsum ...) are not part of the repository.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model, load_model
from tuneloop.training.batches import plan_steps
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import train
from tuneloop.training.monitors import guess_loss

CURVES = Path(__file__).parent / "curves"
Chat = list[dict[str, Any]]
KEPT = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "seconds", "val_loss")


def ask(question: str, answer: str, system: str = "") -> Chat:
    """A conversation of one question."""
    start = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a jsonl or json file."""
    text = path.read_text(encoding="utf-8")
    yield from json.loads(text) if path.suffix == ".json" else map(json.loads, text.splitlines())


def banking(data: Path) -> Iterator[Chat]:
    for r in lines(data / "banking77/train.jsonl"):
        yield ask(r["text"], r["label"].replace("_", " "), "Name the intent.")


def dialogsum(data: Path) -> Iterator[Chat]:
    for r in lines(data / "dialogsum/dev.jsonl"):
        yield ask(r["dialogue"], r["summary"], "Summarise.")


def instructions(path: Path) -> Iterator[Chat]:
    for r in lines(path):
        yield ask(f"{r['instruction']}\n{r.get('input') or ''}".strip(), r["output"])


def alpaca(data: Path) -> Iterator[Chat]:
    yield from instructions(data / "alpaca_en_demo/train.json")


def selfinstruct(data: Path) -> Iterator[Chat]:
    yield from instructions(data / "selfinstruct_seed/alpaca.jsonl")


def orders(data: Path) -> Iterator[Chat]:
    for r in lines(data / "taskmaster4_chats/train.jsonl"):
        turns = [m for m in r["messages"] if m["role"] in ("user", "assistant") and m.get("content")]
        if len(turns) >= 2 and turns[0]["role"] == "user" and turns[1]["role"] == "assistant":
            yield [{"role": m["role"], "content": m["content"]} for m in turns[:2]]


def general(data: Path) -> Iterator[Chat]:
    yield from instructions(data / "general_mix/all.jsonl")


def languages(data: Path) -> Iterator[Chat]:
    for r in lines(data / "langid_udhr/all.jsonl"):
        yield ask(r["text"][:80], r["lang"], "Which language?")


def requests(data: Path) -> Iterator[Chat]:
    for r in lines(data / "nlupp_banking/all.jsonl"):
        yield ask(r["text"], ", ".join(sorted(r["labels"] or ["none"])), "List what is asked for.")


def code(data: Path) -> Iterator[Chat]:
    for r in lines(data / "humaneval/test.jsonl"):
        yield ask(f"Complete this function:\n{r['prompt']}", r["canonical_solution"])


@dataclass(frozen=True)
class Recipe:
    """One recorded run: rows, settings, and what was spoiled (an empty string: nothing)."""

    source: Callable[[Path], Iterator[Chat]]
    rows: int
    settings: dict[str, Any] = field(default_factory=dict)
    spoiled: str = ""
    seed: int = 0
    longest: int = 160  # tokens of a row


PLAIN: dict[str, Any] = {"epochs": 1.0, "evaluations": 5, "val_rows": 40, "patience": 99}
RUNS: dict[str, Recipe] = {
    "healthy-banking": Recipe(banking, 900),
    "healthy-banking-cosine": Recipe(banking, 700, {"rank": 4, "targets": "attention", "schedule": "cosine", "rows_per_step": 4, "learning_rate": 1e-3}, seed=1),
    "healthy-banking-passes": Recipe(banking, 200, {"epochs": 2.0, "rank": 8, "learning_rate": 3e-4}, seed=2),
    "healthy-banking-one-rate": Recipe(banking, 280, {"lora_plus": 1.0, "schedule": "constant", "rows_per_step": 6}, seed=6),
    "healthy-dialogsum": Recipe(dialogsum, 70, {"rows_per_step": 2}, seed=3, longest=220),
    "healthy-alpaca": Recipe(alpaca, 330, {"schedule": "constant", "learning_rate": 2e-4}, seed=4),
    "healthy-alpaca-small-steps": Recipe(alpaca, 120, {"rows_per_step": 2, "rank": 32, "dropout": 0.1}, seed=5),
    "overfitting": Recipe(selfinstruct, 100, {"epochs": 3.0, "rows_per_step": 4, "learning_rate": 2e-4}, "passes", 7),
    "healthy-orders": Recipe(orders, 700, {"rows_per_step": 4, "rank": 2}, seed=8),
    "healthy-general": Recipe(general, 200, {"rows_per_step": 4, "schedule": "cosine"}, seed=9),
    "healthy-languages": Recipe(languages, 220, {"rows_per_step": 4, "learning_rate": 3e-4}, seed=10),
    "healthy-two-passes": Recipe(orders, 140, {"epochs": 2.0, "max_grad_norm": 0.3, "schedule": "cosine"}, seed=11),
    "rate-x100": Recipe(banking, 600, {"learning_rate": 5e-2}, "learning_rate"),
    "rate-x100-text": Recipe(alpaca, 200, {"learning_rate": 5e-2, "rows_per_step": 4}, "learning_rate", 1),
    "rate-x20": Recipe(banking, 320, {"learning_rate": 1e-2}, "learning_rate", 2),
    "rate-by-200": Recipe(banking, 600, {"learning_rate": 2.5e-6}, "low learning_rate", 3),
    "shuffled-labels": Recipe(banking, 900, {}, "labels"),
    "poisoned-batch": Recipe(banking, 700, {}, "tokens", 1),
    "poisoned-batch-labels": Recipe(banking, 800, {"rows_per_step": 6}, "answers of a batch", 2),
    "poisoned-batch-text": Recipe(alpaca, 140, {"rows_per_step": 4, "learning_rate": 2e-4}, "tokens", 3),
    "forty-rows": Recipe(banking, 40, {"epochs": 50.0, "evaluations": 10}, "repetition"),
    # Made after the thresholds: other data and other methods.
    "healthy-code-rslora": Recipe(code, 110, {"rslora": True, "rank": 8, "targets": "attention", "rows_per_step": 2, "schedule": "cosine"}, seed=22, longest=320),
    "rate-x100-full": Recipe(requests, 400, {"method": "full", "learning_rate": 1e-2}, "learning_rate", 23),
    "shuffled-requests": Recipe(requests, 800, {"rank": 4, "targets": "attention", "schedule": "cosine", "learning_rate": 1e-3}, "labels", 24),
    "healthy-requests": Recipe(requests, 600, {"rows_per_step": 6, "schedule": "constant"}, seed=26),
    "shuffled-requests-default": Recipe(requests, 700, {}, "labels", 27),
    "shuffled-orders": Recipe(orders, 600, {"rows_per_step": 6}, "labels", 28),
    "poisoned-prefix": Recipe(requests, 600, {"method": "prefix", "learning_rate": 3e-2}, "tokens", 25),
}  # fmt: skip


def rows_of(recipe: Recipe, data: Path, model: Model) -> tuple[list[Rendered], list[Rendered]]:
    """Rendered rows of a run, those for training and 40 for validation."""
    rng = random.Random(recipe.seed)
    chats = list(recipe.source(data))
    rng.shuffle(chats)
    if recipe.spoiled == "labels":
        answers = [chat[-1]["content"] for chat in chats]
        rng.shuffle(answers)
        chats = [[*chat[:-1], {"role": "assistant", "content": answer}] for chat, answer in zip(chats, answers, strict=True)]  # fmt: skip
    rendered: list[Rendered] = []
    for chat in chats:
        row = model.template.render(chat)  # type: ignore[arg-type]
        if len(row.ids) <= recipe.longest and any(row.mask):
            rendered.append(row)
        if len(rendered) == recipe.rows + 40:
            break
    return rendered[40:], rendered[:40]


def poison(rows: Sequence[Rendered], config: TrainConfig, recipe: Recipe) -> tuple[list[Rendered], int, list[int]]:
    """One step's rows with supervised tokens replaced (lengths stay, so the plan does); the step, and its rows."""
    steps = plan_steps(rows, config, recipe.seed)
    at = round(len(steps) * 0.6)
    picked = [i for micro in steps[at].micro_batches for i in micro]
    rng, out = random.Random(recipe.seed), list(rows)
    for i in picked:
        row = rows[i]
        other = rng.sample(range(1000, 40000), len(row.ids))
        if recipe.spoiled != "tokens":  # the answer of another row, cut or repeated to the same length
            donor = rows[rng.randrange(len(rows))]
            answer = [t for t, m in zip(donor.ids, donor.mask, strict=True) if m]
            other = [answer[k % len(answer)] for k in range(len(row.ids))]
        out[i] = Rendered([o if m else t for t, m, o in zip(row.ids, row.mask, other, strict=True)], row.mask)
    return out, at + 1, picked


def record(name: str, data: Path, model: Model) -> None:
    """Make one run and write its curve."""
    recipe = RUNS[name]
    config = TrainConfig(**{**PLAIN, **recipe.settings})
    rows, val = rows_of(recipe, data, model)
    head: dict[str, Any] = {"run": name, "spoiled": recipe.spoiled, "training_rows": len(rows), "settings": recipe.settings,
                            "seed": recipe.seed}  # fmt: skip
    if recipe.spoiled in ("tokens", "answers of a batch"):
        rows, head["step"], head["rows"] = poison(rows, config, recipe)
    kept: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(model, rows, val, config, Path(folder), seed=recipe.seed, log=kept.append)
        except Exception as error:  # a run that was spoiled may end early
            head["ended"] = str(error).splitlines()[0]
    head["guess_loss"] = short(guess_loss([tuple(t for t, m in zip(r.ids, r.mask, strict=True) if m) for r in rows]))
    CURVES.mkdir(exist_ok=True)
    with (CURVES / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for line in [head, *({k: short(r[k]) for k in KEPT if k in r} for r in kept)]:
            file.write(json.dumps(line) + "\n")
    print(name, len(kept), "records", head.get("ended", ""), flush=True)


def short(value: Any) -> Any:
    """Five digits are enough for a curve; what is no number is None, as in metrics.jsonl."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if value - value == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    for name in args.names or RUNS:
        record(name, args.data, load_model("smollm2-135m"))


if __name__ == "__main__":
    main()
