"""The proof of a chat template on those of popular models, with real conversations.

    python benchmarks/templates.py FOLDER DATA [DATA ...]

FOLDER has the templates as text and `models.json`: a list of `{"name", "template" (the file's name), "source" (where it is from, and
when), "bos", "eos", "stops" (the tokens at which generation ends), "adds_bos"}`. The templates are their makers' and are not kept
here. The tokenizer is the packaged model's with the control tokens of the template, which decide all that is proved but the numbers
of tokens. DATA: files that `prepare` reads; of each 200 rows are rendered. Prints a table of what was found.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.load_eval_file import read_whole
from tuneloop.models.chat.proof import MOST_ROWS, prove_template
from tuneloop.models.chat.template import load_template
from tuneloop.models.files.names import resolve
from tuneloop.records.rows import Row

CONTROL = re.compile(
    r"<\|[^|<>\s']+\|>|<｜[^｜']+｜>|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn)>|\[/?[A-Z_]{4,}\]"
)
IDS = 100_000  # added tokens come behind the packaged model's


def model_folder(entry: dict[str, Any], source: str, base: Path, folder: Path) -> Path:
    """A model's folder with the tokens of a template, without weights."""
    form = json.loads((base / "tokenizer.json").read_text())
    named = [entry["bos"], entry["eos"], *entry["stops"], *CONTROL.findall(source)]
    known = {token["content"] for token in form["added_tokens"]}
    new = [name for name in dict.fromkeys(named) if name and name not in known]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    start = max([*form["model"]["vocab"].values(), *(token["id"] for token in form["added_tokens"])]) + 1
    form["added_tokens"] += [
        {"id": start + i, "content": name, **flags, "special": "think" not in name and "tool_call" not in name}
        for i, name in enumerate(new)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(form))
    settings = {"eos_token": entry["eos"], "chat_template": source, "add_bos_token": entry.get("adds_bos", False)}
    if entry["bos"]:
        settings["bos_token"] = entry["bos"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens = {token["content"]: token["id"] for token in form["added_tokens"]}
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tokens[name] for name in entry["stops"]]})
    )
    return folder


def some_rows(path: str) -> list[Row]:
    """Rows of a file, evenly spread."""
    rows = read_whole(path, PrepareConfig()).rows
    return list(rows) if len(rows) <= MOST_ROWS else [rows[i * len(rows) // MOST_ROWS] for i in range(MOST_ROWS)]


def main() -> None:
    """Prove each template and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", nargs="+")
    arguments = parser.parse_args()
    sets = {Path(path).parent.name + "/" + Path(path).name: some_rows(path) for path in arguments.data}
    print(f"rows: {', '.join(f'{len(rows)} of {name}' for name, rows in sets.items())}\n")
    print("| model | findings | ms a row |\n|---|---|---|")
    for entry in json.loads((arguments.folder / "models.json").read_text()):
        source = (arguments.folder / entry["template"]).read_text()
        with tempfile.TemporaryDirectory() as scratch:
            folder = model_folder(entry, source, resolve("smollm2-135m"), Path(scratch))
            template = replace(load_template(folder), source=source, split_after="")
            began, lines = time.perf_counter(), dict[str, None]()
            for rows in sets.values():
                for finding in prove_template(folder, template, rows, name=entry["name"]).findings:
                    if finding.name == "padding":  # no padding is stated here
                        continue
                    lines[f"**{finding.level}** {finding.name}: {finding.message}"] = None
            milliseconds = 1000 * (time.perf_counter() - began) / sum(map(len, sets.values()))
            shutil.rmtree(scratch, ignore_errors=True)
            Path(scratch).mkdir()
        text = "<br>".join(lines).replace("|", "\\|").replace("\n", " ") or "none"
        print(f"| {entry['name']} | {text} | {milliseconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
