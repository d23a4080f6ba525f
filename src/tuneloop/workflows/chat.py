"""A conversation with a target, a line at a time, with another one beside it if wanted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.progress import no_progress
from tuneloop.data.formats import Rejection
from tuneloop.data.task import Prompt
from tuneloop.records.rows import Message
from tuneloop.workflows.predict import Asker, Options, Prediction, ask_endpoint, prompt_ids
from tuneloop.workflows.targets import Target, open_target

if TYPE_CHECKING:
    from tuneloop.inference.client import Endpoint
    from tuneloop.models.load import Model

TOP = 5  # labels that are shown with their probabilities
HELP = """\
  a line          is asked; a line of JSON gives several columns: {"subject": "...", "body": "..."}
  /prompt         the last prompt as the model read it, control tokens included; /prompt TEXT that of a text, without asking
  /system TEXT    another system turn; /system - for none; /system alone for that of training
  /reset          forget the conversation
  /help, /quit    this text; the end (Ctrl-D also ends, Ctrl-C stops an answer)
  //TEXT          asks a text that begins with /"""


@dataclass
class Speaker:
    """Who answers, under a name.

    Args:
        examples: turns of examples that come before the question.
        model: gives the model for the time of an answer; a base shares the tuned model's weights, with the adapter off.
        said: the conversation so far: questions and answers.
    """

    name: str
    target: Target
    examples: Sequence[Message] = ()
    model: Callable[[], AbstractContextManager[Model]] | None = None
    said: list[Message] = field(default_factory=list)

    @property
    def remembers(self) -> bool:
        """Whether earlier turns are part of a question: where training rows were conversations, and of untuned models."""
        return self.target.task is None or self.target.task.kind == "chat"

    @contextlib.contextmanager
    def asked(self) -> Iterator[Model]:
        """The model, for the time of an answer."""
        if self.model is None:
            yield self.target.model
            return
        with self.model() as model:
            yield model


@dataclass
class Chat:
    """A conversation.

    Args:
        speakers: who is asked, the target first.
        max_new_tokens: longest answer; default: that of training.
        system: in place of the trained system turn.
    """

    speakers: list[Speaker]
    max_new_tokens: int | None = None
    system: str | None = None

    def load(self) -> None:
        """Load all models before the first question."""
        for speaker in self.speakers:
            if speaker.target.endpoint is None:
                _ = speaker.target.model

    @property
    def columns(self) -> list[str]:
        """The columns that a question needs, where there are several."""
        task = self.speakers[0].target.task
        return task.inputs if task is not None and len(task.inputs) > 1 else []

    def question(self, line: str) -> dict[str, Any]:
        """A line as a record.

        Raises:
            UserError: the model needs several columns, and the line doesn't give them.
        """
        if line.lstrip()[:1] == "{":
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    return value
        if self.columns:
            shown = ", ".join(f'"{name}": "..."' for name in self.columns)
            raise UserError("The model was trained on several columns", next_step=f"write them as JSON: {{{shown}}}")
        return {"text": line}

    def _asker(self, speaker: Speaker, record: dict[str, Any]) -> Asker:
        top = TOP if speaker.target.scores_labels else 0
        return Asker(speaker.target, Options("", self.system, top, self.max_new_tokens), [record])

    def prompt(self, speaker: Speaker, record: dict[str, Any]) -> Prompt | Rejection:
        """What a speaker is asked: the question as in training, behind the examples and the conversation so far."""
        made = self._asker(speaker, record).read(record)
        if isinstance(made, Rejection) or made.continues is not None:
            return made
        before = speaker.said if speaker.remembers else []
        return replace(made, messages=[*_system(made.messages), *speaker.examples, *before, *_others(made.messages)])

    def answer(self, speaker: Speaker, record: dict[str, Any], show: Callable[[str], None]) -> Prediction:
        """A speaker's answer; what is written is given to `show` piece by piece.

        Raises:
            UserError: the record has not the columns that the speaker needs, or the endpoint refuses.
        """
        prompt = self.prompt(speaker, record)
        if isinstance(prompt, Rejection):
            return Prediction(error=f"{prompt.reason}: {prompt.detail}")
        asker = self._asker(speaker, record)
        if speaker.target.endpoint is not None:
            found = ask_endpoint(speaker.target.endpoint, [prompt], asker.limit, no_progress)[0]
            show(found.text)
        else:
            with speaker.asked() as model:
                found = _ask(asker, model, prompt, show)
        if not found.error and speaker.remembers and prompt.continues is None:
            speaker.said = [
                *_others(prompt.messages)[len(speaker.examples) :],
                {"role": "assistant", "content": found.text},
            ]
        return found

    def rendered(self, speaker: Speaker, record: dict[str, Any]) -> str:
        """The prompt as a speaker reads it, control tokens as text; of an endpoint the turns."""
        prompt = self.prompt(speaker, record)
        if isinstance(prompt, Rejection):
            return f"{prompt.reason}: {prompt.detail}"
        if speaker.target.endpoint is not None:
            return json.dumps(prompt.messages, ensure_ascii=False, indent=2)
        template = speaker.target.model.template
        ids = prompt_ids(speaker.target.model, prompt)
        if isinstance(ids, Rejection):
            return f"{ids.reason}: {ids.detail}"
        text: str = template.tokenizer.decode(ids, skip_special_tokens=False)
        return f"{text}\n({len(ids):,} tokens)"

    def reset(self) -> None:
        """Forget the conversation."""
        for speaker in self.speakers:
            speaker.said = []


def _system(turns: Sequence[Message]) -> list[Message]:
    return [turn for turn in turns if turn["role"] == "system"]


def _others(turns: Sequence[Message]) -> list[Message]:
    return [turn for turn in turns if turn["role"] != "system"]


def _ask(asker: Asker, model: Model, prompt: Prompt, show: Callable[[str], None]) -> Prediction:
    """A model's answer to one prompt; an interrupt stops the writing, and what was said stays."""
    from tuneloop.inference.stream import stream_ids, stream_text

    ids = prompt_ids(model, prompt)
    if isinstance(ids, Rejection):
        return Prediction(error=f"{ids.reason}: {ids.detail}")
    if asker.target.scores_labels:
        found = asker.score([ids], no_progress, model)[0]
        show(labels_in_words(found))
        return found
    written: list[int] = []

    def counted() -> Iterator[int]:
        for token in stream_ids(model, ids, max_new_tokens=min(asker.limit, model.context - len(ids))):
            written.append(token)
            yield token

    said: list[str] = []
    stopped = False
    try:
        for piece in stream_text(model, counted()):
            said.append(piece)
            show(piece)
    except KeyboardInterrupt:
        stopped = True
    ended = stopped or (bool(written) and written[-1] in model.template.end_ids)
    text = "".join(said)
    return Prediction(text, finish="stop" if ended else "length", prompt_tokens=len(ids), tokens=len(written))


def labels_in_words(found: Prediction) -> str:
    """The label with its probability, and the next ones."""
    first, *others = (found.probabilities or {found.text: found.probability or 0.0}).items()
    rest = ", ".join(f"{label} {_percent(p)}" for label, p in others)
    return f"{first[0]}  {_percent(first[1])}" + (f"   (then {rest})" if rest else "")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


# --- who is compared -----------------------------------------------------------------------------


def open_chat(
    target: str,
    against: str = "",
    *,
    base: str = "",
    task: str = "",
    system: str | None = None,
    max_new_tokens: int | None = None,
    endpoint: Callable[[str], Endpoint] | None = None,
) -> Chat:
    """A conversation with a target.

    Args:
        against: `base` (the model before tuning), `few-shot` (the same with the examples of the baseline), or another target.
        base, task, endpoint: see `open_target`.
        system: in place of the trained system turn.

    Raises:
        UserError: no such target, or nothing to compare it with.
    """
    opened = open_target(target, base=base, task=task, endpoint=endpoint)
    tuned = opened.trained is not None or opened.run is not None
    speakers = [Speaker("tuned" if tuned else "answer" if not against else Path(target).name, opened)]
    if against in ("base", "few-shot"):
        speakers.append(_untuned(opened, against))
    elif against:
        other = open_target(against, endpoint=endpoint)
        if other.task is None:
            other = replace(other, task=opened.task)  # asked the same, under the same instruction
        speakers.append(Speaker(Path(against).name or against, other))
    return Chat(speakers, max_new_tokens, system)


def _untuned(target: Target, how: str) -> Speaker:
    """The model before tuning, with examples if wanted."""
    if not target.untuned:
        raise UserError(
            "Nobody says what this was tuned from",
            where=f"--against {how}",
            next_step="name the other model: --against MODEL",
        )
    if target.trained is None:
        plain = Target(target.untuned, target.untuned, task=target.task)
        return Speaker(how, plain, _examples(target, plain) if how == "few-shot" else ())

    @contextlib.contextmanager
    def switched_off() -> Iterator[Model]:
        from tuneloop.models.methods import base_only

        with base_only(target.model.net):
            yield target.model

    return Speaker(how, target, _examples(target, target) if how == "few-shot" else (), switched_off)


def _examples(target: Target, of: Target) -> list[Message]:
    """Turns of the examples that the few-shot baseline shows, from the run's training split.

    Raises:
        UserError: the target is no run, or its data set is gone.
    """
    from tuneloop.evaluate.few_shot import example_turns
    from tuneloop.workflows.run_context import RunContext, dataset_of, load_run_recipe
    from tuneloop.workflows.systems import few_shot_examples

    if target.run is None:
        raise UserError(
            "Examples come from a run's training rows, and this is no run",
            where="--against few-shot",
            next_step="name the run's folder, or compare with --against base",
        )
    recipe = load_run_recipe(target.run, [])
    dataset = dataset_of(RunContext(recipe, target.run), True, "")
    rows = dataset.test[:50] or dataset.train[:50]
    found, _ = few_shot_examples(of.model, dataset, rows, recipe.baselines, recipe.evaluate, recipe.seed)
    return [turn for row in found for turn in (*_others(row.prompt), example_turns(row)[-1])]
