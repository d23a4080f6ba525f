"""`tuneloop collect`."""

from __future__ import annotations

from pathlib import Path

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument, given
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted
from tuneloop.data.config import PersonalConfig
from tuneloop.improve.collect.collect import DROPPED, CollectOptions


def command(
    store: str = argument("[STORE]", "The server's folder, or its store: a file or a postgresql:// URL.", "serve"),
    out: str = flag(..., "FOLDER", "Folder for the files.", "-o"),
    run: str = flag(
        "", "FOLDER", "Run in use: also write its rows and the collected ones, as train.jsonl and test.jsonl."
    ),
    keep_personal: bool = switch("Leave personal data in texts as they are.", "--keep-personal"),
    *,
    options: CollectOptions,
    output: Output,
) -> None:
    """Turn requests with feedback into training data, and keep some users for the test.

    Writes sft.jsonl, preference.jsonl, kto.jsonl and heldout.jsonl, which `tuneloop prepare` reads, and must_pass.jsonl, demands
    for the suite of a gate.
    """
    from tuneloop.improve.collect.command import collect_store

    personal = PersonalConfig(mode="off") if keep_personal else None
    with screen(output.quiet, "collecting"):
        found = collect_store(store, out, given(options), personal=personal, run=run)
    if output.json:
        print_json({**found.to_json(), "path": out})
        return
    print(f"{'read':<11} {counted(found.requests, 'request')}, {found.with_feedback:,} with feedback")
    for name, rows in found.counts.items():
        own = f", {found.own:,} of them the model's own answers" if name == "sft" and found.own else ""
        print(f"{name:<11} {counted(rows, 'row')}{own}")
    for reason, number in found.dropped.items():
        print(f"{'left out':<11} {number:,}: {DROPPED[reason]}")
    test = f" split.test={out}/heldout.jsonl" if found.counts["heldout"] else ""
    if found.counts["must_pass"]:
        print(f"{'suite':<11} choose rows of {out}/must_pass.jsonl for the suite's must_pass_file")
    if run:
        from tuneloop.improve.collect.training_rows import settings_of_retraining

        print(f"{'next':<11} tuneloop run RECIPE.yaml {' '.join(settings_of_retraining(Path(out)))}")
        return
    first = next((name for name, rows in found.counts.items() if rows and name not in ("heldout", "must_pass")), "")
    if first:
        print(f"{'next':<11} tuneloop prepare {out}/{first}.jsonl{test}")
