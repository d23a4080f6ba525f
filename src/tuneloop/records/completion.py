"""One answer of a model, and what is known of it: the one record from the engine to the files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

ENGINE = "tuneloop"  # the name of our own engine
Finish = Literal["stop", "length", "choice", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of a written token, and of the likeliest tokens in its place."""

    id: int  # of the token
    logprob: float  # natural logarithm of its probability, before temperature and filters
    top: tuple[tuple[int, float], ...] = ()  # (token id, log probability) of the likeliest ones, the likeliest first


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered to one prompt.

    Args:
        text: the answer, without control tokens and outer white space; of scored labels the best one.
        reasoning: what the model thought before its answer, without the tags around it; empty: it did not think.
        token_ids: written tokens, the one that ended the turn included; empty where they are not known.
        finish: `stop`: the model or a stop string ended it; `length`: the limit cut it; `choice`: a label was chosen;
            `cancelled`: no one waited any longer; `error`: there is no answer, and `error` says why.
        prompt_tokens, completion_tokens: read and written; 0 where they are not counted.
        cached_tokens: of `prompt_tokens`, those that the engine had read before, for another request.
        ttft_ms, total_ms: from the start of reading the prompt to the first and to the last token; None: not known. Two
            completions that differ in them alone are equal.
        label_scores: of choice scoring, one length-normalised log likelihood for each label.
        label_probability: that the model gives this label, given that it gives one of them; of the whole label.
        loss, loss_tokens: sum of -log likelihood of the reference answer, and its tokens; None: not measured.
        logprobs: of the written tokens, where they were requested; `error`: why there is no answer.
        engine: what computed it: `tuneloop`, the address of an endpoint, ...
        adapter: hash of the adapter that was applied; empty: none that was named.
        served: name of the model that an endpoint says has answered; empty: it does not say.
        cached: whether it was known from before, so that it cost nothing.
        retries: further tries that it took; `lost`: tries whose reply did not arrive, though it may have been billed.
        retry_after: seconds after which an engine that is busy takes requests again; None: it does not say.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish: Finish = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: float | None = field(default=None, compare=False)
    total_ms: float | None = field(default=None, compare=False)
    label_scores: Mapping[str, float] | None = None
    label_probability: float | None = None
    reasoning: str = ""
    loss: float | None = None
    loss_tokens: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    error: str = ""
    engine: str = ""
    adapter: str = ""
    served: str = field(default="", compare=False)
    cached: bool = False
    retries: int = 0
    lost: int = 0
    retry_after: float | None = field(default=None, compare=False)
    cached_tokens: int = field(default=0, compare=False)

    @property
    def finished(self) -> bool:
        """Whether the answer is whole: no limit, error or cancelling has cut it."""
        return self.finish in ("stop", "choice")

    @property
    def confidence(self) -> float:
        """The probability of the label; NaN where there is none."""
        return math.nan if self.label_probability is None else self.label_probability

    def to_json(self) -> dict[str, Any]:
        """A JSON object without values that are the default (but `text` and `finish`). NaN and infinity become null."""
        values: dict[str, Any] = {"text": self.text, "finish": self.finish}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name not in values and value != spec.default:
                values[spec.name] = _plain(value)
        return values

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Completion:
        """The inverse of `to_json`, without unknown keys. `ValueError`, `TypeError`: not a completion."""
        if not isinstance(value, Mapping):
            raise TypeError("not a JSON object")
        values = {spec.name: value[spec.name] for spec in fields(Completion) if spec.name in value}
        if values.get("finish", "stop") not in get_args(Finish):
            raise ValueError(f"unknown finish {values['finish']!r}")
        if not isinstance(values.get("text", ""), str):
            raise ValueError("the text of a completion is not a string")
        if "token_ids" in values:
            values["token_ids"] = tuple(int(i) for i in values["token_ids"])
        if values.get("logprobs") is not None:
            values["logprobs"] = tuple(
                TokenLogprob(int(i), _number(p), tuple((int(t), _number(q)) for t, q in top))
                for i, p, top in values["logprobs"]
            )
        if values.get("label_scores") is not None:
            values["label_scores"] = {label: _number(score) for label, score in values["label_scores"].items()}
        return Completion(**values)


def _plain(value: Any) -> Any:
    """A field as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, TokenLogprob):
        return [value.id, _plain(value.logprob), _plain(value.top)]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def failures(replies: Sequence[Completion]) -> list[tuple[str, int]]:
    """Reasons of requests that failed, the commonest first."""
    return Counter(reply.error for reply in replies if reply.error).most_common()
