"""A prompt that is kept like what was trained: `prompt.yaml`, and how it was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import read_yaml, write_yaml
from tuneloop.records.record import Number, Part, Record, as_record

PROMPT, EXAMPLES = "prompt.yaml", "examples.jsonl"
OPTIMISED = "optimised prompt"  # in `run.json`, and the name of the system in its evaluation
PROMPT_RESULT = "."  # of a run: its folder itself is the result
AGAIN = "correct the file, or search again: tuneloop prompt DATA --model MODEL"


class PromptManifest(Record, noun="a prompt", file=PROMPT, again=AGAIN):
    """`prompt.yaml`, next to `examples.jsonl` with the rows that it shows, and `tuneloop.json` with the task.

    Args:
        model: who answers: the name of a model here, or the URL of a server; `served_as`: the server's name of it.
        system: template of the system turn; None: a row's own stays; "": there is none.
        user: template of the last user turn; `{input}` is its text, `{labels}` the allowed labels, one a line.
        chosen: `fixed`: all examples, in their order; `nearest`: to each question the `shown` nearest ones.
        by: what tells how near texts are: sentence embeddings (`minilm`) or TF-IDF (`words`).
    """

    model: str
    served_as: str = ""
    system: str | None = None
    user: str = "{input}"
    chosen: Literal["fixed", "nearest"] = "fixed"
    shown: int = 0
    by: Literal["minilm", "words"] = "words"


def prompt_folder(name: str | Path) -> Path | None:
    """The folder of a prompt; None where no `prompt.yaml` is there."""
    folder = Path(name).expanduser()
    return folder if (folder / PROMPT).is_file() else None


def read_prompt(folder: Path) -> PromptManifest:
    """The prompt of a folder, written by a search or by hand. Raises UserError: damaged, or it leaves the text out."""
    file = folder / PROMPT
    values = read_yaml(file, "prompt")
    manifest = as_record(PromptManifest, {"version": 1, **values}, str(file))
    if unknown := sorted(set(values) - set(PromptManifest.model_fields)):  # written by hand: a slip changes the prompt
        step = did_you_mean(unknown[0], PromptManifest.model_fields, f"write {', '.join(PromptManifest.model_fields)}")
        raise UserError(f"A prompt has no key {unknown[0]!r:.40}", where=str(file), next_step=step)
    if "{input}" not in manifest.user:
        step = "put {input} where it belongs"
        raise UserError("The prompt leaves out the row's text", where=f"{file}: user", next_step=step)
    return manifest


def write_prompt(folder: Path, manifest: PromptManifest) -> None:
    """Write `prompt.yaml`."""
    write_yaml(folder / PROMPT, manifest.to_json())


class Rung(Part):
    """What a candidate of a search has shown.

    Args:
        name: what it is, in words, as in `label list, 8 diverse examples`.
        rows: validation rows that it answered; `value`: the deciding metric on these.
        tokens: of its prompt, on average; `round`: the last one that it was in, from 1.
    """

    name: str
    rows: int = 0
    value: Number = 0.0
    tokens: float = 0.0
    round: int = 0


class PromptSearch(Record, noun="a search for a prompt", file="search.json", again="delete the file and search again"):
    """`search.json`: how a prompt was found.

    Args:
        key: hash of everything that the search depends on; `metric`: that decides.
        search_rows, check_rows: validation rows that the search saw, and others on which its best met plain few-shot.
        tried: the candidates, the best first.
        kept: the name of the prompt that was kept; `plain`: that of plain few-shot.
        best_value, plain_value: both on `check_rows`.
        calls, tokens, usd, seconds: what it took, with what was known from before.
        most_calls: that it was allowed.
        words: how it came out, in a sentence.
    """

    key: str = ""
    metric: str = ""
    search_rows: int = 0
    check_rows: int = 0
    tried: list[Rung] = []
    kept: str = ""
    plain: str = ""
    best_value: Number | None = None
    plain_value: Number | None = None
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0
    most_calls: int = 0
    words: str = ""

    def to_json(self) -> dict[str, Any]:
        """Every key, those with default values too: a reader asks what the search took."""
        return {**self.model_dump(mode="json"), **super().to_json()}
