"""A conversation with a target, a line at a time, with another one next to it if wanted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_line
from tuneloop.data import TaskPrompt
from tuneloop.data.formats import Rejection
from tuneloop.inference import Request, open_target
from tuneloop.inference.prompt import example_turns
from tuneloop.models.methods import OWN, base_only
from tuneloop.pipeline.answers.asking import TaskTarget, few_shot_examples, open_with_task
from tuneloop.pipeline.answers.predictions import Asker, Options, Prediction, prediction_of
from tuneloop.pipeline.context import RunContext
from tuneloop.recipe import CONFIG, load_recipe
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Message

if TYPE_CHECKING:
    from tuneloop.inference import Endpoint

TOP = 5  # labels that are shown with their probabilities


@dataclass
class Speaker:
    """Who answers, under a name."""

    name: str
    target: TaskTarget
    examples: Sequence[Message] = ()  # turns of examples that come before the question
    base: bool = False  # whether the base model answers; it shares the tuned model's weights
    history: list[Message] = field(default_factory=list)  # the conversation so far: questions and answers

    @property
    def remembers(self) -> bool:
        """Whether earlier turns are part of a question: of untuned models, and of those trained on conversations."""
        return self.target.task is None or self.target.task.kind == "chat"


@dataclass
class Chat:
    """A conversation."""

    speakers: list[Speaker]  # the target first
    max_new_tokens: int | None = None  # longest answer; None: that of training
    system: str | None = None  # in place of the trained system turn

    def load(self) -> None:
        """Load all models before the first question."""
        for speaker in self.speakers:
            speaker.target.target.load()

    @property
    def columns(self) -> list[str]:
        """The columns that a question needs, where there are several."""
        task = self.speakers[0].target.task
        return task.inputs if task is not None and len(task.inputs) > 1 else []

    def question(self, line: str) -> dict[str, Any]:
        """A line as a record; refused where the model needs several columns, and the line doesn't give them."""
        if line.lstrip()[:1] == "{":
            with contextlib.suppress(ValueError, RecursionError):
                value = parse_line(line)
                if isinstance(value, dict):
                    return value
        if self.columns:
            example = ", ".join(f'"{name}": "..."' for name in self.columns)
            raise UserError("The model was trained on several columns", next_step=f"write them as JSON: {{{example}}}")
        return {"text": line}

    def _asker(self, speaker: Speaker, record: dict[str, Any]) -> Asker:
        top = TOP if speaker.target.scores_labels else 0
        return Asker(speaker.target, Options("", self.system, top, self.max_new_tokens), [record])

    def prompt(self, speaker: Speaker, record: dict[str, Any]) -> TaskPrompt | Rejection:
        """What a speaker reads: the question as in training, behind the examples and the conversation so far."""
        prompt = self._asker(speaker, record).read(record)
        if isinstance(prompt, Rejection) or prompt.continues is not None:
            return prompt
        before = speaker.history if speaker.remembers else []
        system = [turn for turn in prompt.messages if turn["role"] == "system"]
        return replace(prompt, messages=[*system, *speaker.examples, *before, *_others(prompt.messages)])

    def answer(self, speaker: Speaker, record: dict[str, Any], show: Callable[[str], None]) -> Prediction:
        """A speaker's answer, given to `show` piece by piece as it is written; `UserError`: columns are missing."""
        prompt = self.prompt(speaker, record)
        if isinstance(prompt, Rejection):
            return Prediction(error=f"{prompt.reason}: {prompt.detail}")
        asker, local = self._asker(speaker, record), speaker.target.local
        with base_only(local.model.net) if speaker.base and local else nullcontext():
            answer = _stream(asker, asker.request(prompt), show)
        if not answer.error and speaker.remembers and prompt.continues is None:
            turns = _others(prompt.messages)[len(speaker.examples) :]
            speaker.history = [*turns, {"role": "assistant", "content": answer.text}]
        return answer

    def rendered(self, speaker: Speaker, record: dict[str, Any]) -> str:
        """The prompt as a speaker reads it, control tokens as text; of an endpoint the turns."""
        prompt = self.prompt(speaker, record)
        if isinstance(prompt, Rejection):
            return f"{prompt.reason}: {prompt.detail}"
        model = speaker.target.model
        if model is None:
            return json.dumps(prompt.messages, ensure_ascii=False, indent=2)
        request = model.rendered(self._asker(speaker, record).request(prompt))
        if isinstance(request, Completion):
            return request.error
        text: str = model.template.tokenizer.decode(list(request.ids), skip_special_tokens=False)
        return f"{text}\n({len(request.ids):,} tokens)"

    def reset(self) -> None:
        """Forget the conversation."""
        for speaker in self.speakers:
            speaker.history = []


def _others(turns: Sequence[Message]) -> list[Message]:
    return [turn for turn in turns if turn["role"] != "system"]


def _stream(asker: Asker, request: Request, show: Callable[[str], None]) -> Prediction:
    """A model's answer to one request; an interrupt stops the writing, and what was written stays."""
    if asker.target.scores_labels:
        answer = next(asker.ask([request]))
        if not answer.error:
            show(labels_in_words(answer))
        return answer
    text, tokens, thinks = "", 0, False
    try:
        for update in asker.target.target.stream(request):
            text += update.text  # before it is shown: an interrupt may come while it is
            tokens += 1
            if update.reasoning:
                show(update.reasoning if thinks else f"<think>\n{update.reasoning}")
                thinks = True
            elif thinks and (update.text or update.completion):
                show("\n</think>\n\n")
                thinks = False
            show(update.text)
            if update.completion is not None:
                return prediction_of(update.completion)
    except KeyboardInterrupt:
        pass
    return Prediction(text, finish="stop", tokens=tokens)


def labels_in_words(answer: Prediction) -> str:
    """The label with its probability, and the next ones."""
    first, *others = (answer.probabilities or {answer.text: answer.probability or 0.0}).items()
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
        against: `base` (the model before tuning), `few-shot` (that with the baseline's examples), or another target.
        base, task, endpoint: see `open_with_task`; `system`: in place of the trained system turn.

    Raises:
        UserError: no such target, or nothing to compare it with.
    """
    opened = open_with_task(target, base=base, task=task, endpoint=endpoint)
    if not opened.target.takes_prompts:
        raise UserError("A file of answers can't chat", where=target, next_step="name a run, a model or an endpoint")
    tuned = opened.target.is_tuned
    speakers = [Speaker("tuned" if tuned else "answer" if not against else Path(target).name, opened)]
    if against in ("base", "few-shot"):
        speakers.append(_untuned(opened, against))
    elif against:
        other = open_with_task(against, endpoint=endpoint)
        if other.task is None:
            other = replace(other, task=opened.task)  # the same prompts, under the same instruction
        speakers.append(Speaker(Path(against).name or against, other))
    return Chat(speakers, max_new_tokens, system)


def _untuned(target: TaskTarget, how: str) -> Speaker:
    """The model before tuning; `few-shot`: with examples."""
    local, base = target.local, target
    if local is None or not local.untuned:
        message, step = "It is not known what this was tuned from", "name the other model: --against MODEL"
        raise UserError(message, where=f"--against {how}", next_step=step)
    if local.trained is None or not (local.trained / OWN).is_file():  # another trainer's may change the base itself
        template = target.task.chat_template if target.task else ""
        base = TaskTarget(open_target(local.untuned, template=template), target.task)
    return Speaker(how, base, _examples(target, base) if how == "few-shot" else (), base=base is target)


def _examples(target: TaskTarget, of: TaskTarget) -> list[Message]:
    """Turns of the examples that the few-shot baseline shows; refused where the target is no run with a data set."""
    run = target.target.run
    if run is None or of.local is None:
        message = "Examples come from a run's training rows, and this is not a run"
        step = "name the run's folder, or compare with --against base"
        raise UserError(message, where="--against few-shot", next_step=step)
    recipe = load_recipe(run / CONFIG)
    dataset = RunContext(recipe, run).dataset()
    rows = dataset.test[:50] or dataset.train[:50]
    examples, _ = few_shot_examples(of.local.model, dataset, rows, recipe.baselines, recipe.evaluate, recipe.seed)
    return [turn for row in examples for turn in (*_others(row.prompt), example_turns(row)[-1])]
