"""A prepared data set on the Hugging Face hub, with a card: its splits, and what was done to the records."""

from __future__ import annotations

from pathlib import Path

from tuneloop.core.units import counted
from tuneloop.core.urls import masked
from tuneloop.data import load_dataset
from tuneloop.records.rows import Dataset
from tuneloop.release.hub import Push, repository_of, upload

CARD = "README.md"
_TASKS = {"classification": "text-classification", "chat": "text-generation", "generation": "text-generation"}


def push_dataset(folder: Path, destination: str, *, send: bool = False, public: bool = False) -> tuple[Push, str]:
    """Upload the splits of a data set with a card; rejects, repairs and paths of this machine stay here.

    Args:
        destination: `hub:OWNER/NAME`.
        send: else nothing is sent, and only what would be is returned.
        public: for everyone to see, where the repository is new.

    Returns:
        What goes, or went, there, and the card.

    Raises:
        UserError: no such place, a split that was changed, no token, or a hub that refuses or can't be reached.
    """
    repo = repository_of(destination)
    dataset = load_dataset(folder)
    files: dict[str, Path | bytes] = {}
    for name, facts in dataset.manifest.splits.by_name.items():
        path = Path(dataset.path) / facts.path
        if facts.rows:
            files[f"data/{name}.jsonl"] = path
    text = dataset_card(dataset, repo)
    files[CARD] = text.encode()
    return upload(repo, files, "dataset", f"tuneloop: {dataset.id}", send=send, public=public), text


def dataset_card(dataset: Dataset, repo: str) -> str:
    """The card: what the hub reads (files of each split, task), then rows, sources, and how records were treated."""
    manifest = dataset.manifest
    rows = {name: facts.rows for name, facts in manifest.splits.by_name.items()}
    task = _TASKS.get(dataset.task)
    lines = ["---", *(["task_categories:", f"- {task}"] if task else []), "configs:", "- config_name: default"]
    lines += ["  data_files:"]
    for name, number in rows.items():
        if number:
            lines += [f"  - split: {'validation' if name == 'val' else name}", f"    path: data/{name}.jsonl"]
    lines += ["tags:", "- tuneloop", "---", "", f"# {repo.partition('/')[2]}", ""]
    total = counted(sum(rows.values()), "row")
    lines += [f"{total} of the task {dataset.task}, prepared by tuneloop as `{dataset.id}`.", ""]
    lines += ["| split | rows |", "|---|---|", *(f"| {name} | {number:,} |" for name, number in rows.items()), ""]
    lines += [
        "A row has `id`, `messages` in the form of OpenAI's API, `meta`, and `label` and `tools` where it has any.",
        "",
    ]
    lines += ["## Sources", "", "| source | records | SHA-256 |", "|---|---|---|"]
    for source in manifest.sources:
        shown = masked(source.path) if "://" in source.path else Path(source.path).name
        lines.append(f"| {shown} | {source.rows:,} | `{source.sha256}` |")
    lines += ["", "## Treatment", ""]
    personal = manifest.personal_mode or "placeholder"
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in manifest.personal.items()) or "none"
    lines.append(f"- Personal data: `{personal}`; found: {kinds}. What no pattern finds, as most names, is in it.")
    for title, counts in (("Rejected", manifest.rejected), ("Repaired", manifest.repaired)):
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in counts.items() if number)
        lines.append(f"- {title}: {reasons or 'nothing'}.")
    for check in manifest.checks:
        if check.level != "ok":
            lines.append(f"- {check.level}: {check.message}")
    lines += ["", "The licence is that of the sources; this card states none.", ""]
    return "\n".join(lines)
