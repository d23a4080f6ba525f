"""Answers that are held to a JSON Schema: which tokens may come next.

llguidance computes it: an MIT wheel of 3 MB without dependencies, which vLLM, SGLang and llama.cpp can use too. It
reads the schema in a millisecond and needs no tables for the vocabulary; outlines-core builds an automaton over the
whole vocabulary for each schema, and xgrammar needs torch, transformers and triton.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tuneloop.core.bounded_work import WORK, TooBusy, TooMuchWork, known, then
from tuneloop.core.foreign import parse_json
from tuneloop.inference.request import WRITES_FREELY, Request, schema_problem

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tuneloop.models.chat import Template

NEEDS = "no_schema: answers are held to a schema by llguidance: pip install 'tuneloop[serve]'"
# Spaces as llama.cpp allows them between tokens of JSON: with any number a model could write them for ever.
SPACES = r"(?: |\n{1,2}[ \t]{0,20})"
COMPILE_SECONDS = 1.0  # of a processor
TOO_LARGE = "the schema takes too much time or memory to compile: use fewer alternatives, patterns and references"
_PROBLEMS: OrderedDict[bytes, str] = OrderedDict()  # of the last schemas


async def compile_problem(schema: Mapping[str, Any]) -> str:
    """Why an engine with llguidance can't hold answers to a schema; empty where it can. The event loop runs on."""
    return await asyncio.wrap_future(_problem(schema))


def _problem(schema: Mapping[str, Any]) -> Future[str]:
    """The same, once it is known. llguidance may take minutes and gigabytes for a schema of a few lines, and overflows
    its stack on others: so it compiles it in a process that can be ended first."""
    problem: str | None = NEEDS if find_spec("llguidance") is None else schema_problem(schema)
    task = b"" if problem else json.dumps(schema).encode()
    if problem or (problem := _PROBLEMS.get(task)) is not None:
        return known(problem)

    def found(compiled: Future[bytes]) -> str:
        try:
            reason = compiled.result().decode()
        except TooBusy as busy:
            return f"busy: {busy}"
        except (TooMuchWork, RuntimeError):
            reason = TOO_LARGE
        _PROBLEMS[task] = f"no_schema: {reason[:160]}" if reason else ""
        if len(_PROBLEMS) > 128:
            _PROBLEMS.popitem(last=False)
        return _PROBLEMS[task]

    return then(WORK.submit(compile_job, task, seconds=COMPILE_SECONDS), found)


def compile_job(schema: bytes) -> bytes:
    """In a process of `core.bounded_work`: what is wrong with a schema in JSON; empty: nothing."""
    from llguidance import LLMatcher, LLTokenizer

    try:
        grammar = LLMatcher.grammar_from_json_schema(parse_json(schema), defaults={"whitespace_pattern": SPACES})
        matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
        reason = matcher.get_error()
        if not reason:
            matcher.compute_bitmask()
            reason = matcher.get_error()
    except (ValueError, TypeError) as error:
        reason = str(error)
    return " ".join(reason.split())[:400].encode()


class Constraint:
    """What one answer may still be.

    Args:
        matcher: of llguidance, at the beginning of the answer.
        ends: tokens that end an answer.
    """

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        self._matcher, self._ends = matcher, list(ends)
        self.over = False  # an end was written: what comes behind it is no one's answer

    def allowed(self, size: int) -> np.ndarray[Any, Any]:
        """Which tokens of a vocabulary of some size may come next (size), bool."""
        import numpy as np

        allowed = np.zeros(size, bool)
        if self._matcher.is_stopped():  # complete: all that can follow is an end
            allowed[self._ends] = True
        else:
            bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
            allowed[: len(bits)] = bits
        return allowed

    def apply(self, logits: Tensor) -> None:
        """Rule out (-inf) what may not come next in a row's logits (V), in place."""
        import torch

        barred = torch.from_numpy(~self.allowed(logits.shape[0]))
        logits.masked_fill_(barred.to(logits.device), float("-inf"))

    def accept(self, token: int) -> None:
        """Continue behind a token that was written."""
        self.over = self.over or token in self._ends
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)


class Grammars:
    """Constraints for the answers of one model: its vocabulary is read once, by `warm` or when the first schema comes.

    Args:
        template: tokenizer, and the tokens that end an answer.
        size: of the vocabulary, as the model's output has it.
    """

    def __init__(self, template: Template, size: int) -> None:
        self._template, self._size = template, size
        self._tokens: Any = None

    def warm(self) -> None:
        """Read the vocabulary, where llguidance is there: half a second for 50,000 tokens, in which no thread runs."""
        if self._tokens is None and find_spec("llguidance") is not None:
            from llguidance import LLTokenizer

            ends = list(self._template.end_ids)
            self._tokens = LLTokenizer(self._template.tokenizer.to_str(), n_vocab=self._size, eos_token=ends)

    def constraint(self, schema: Mapping[str, Any]) -> Constraint | str:
        """What an answer under a schema may be, or why there is none."""
        if reason := _problem(schema).result():
            return reason
        from llguidance import LLMatcher

        self.warm()
        try:
            grammar = LLMatcher.grammar_from_json_schema(dict(schema), defaults={"whitespace_pattern": SPACES})
            matcher = LLMatcher(self._tokens, grammar, log_level=0)
            reason = matcher.get_error()
        except (ValueError, TypeError) as error:
            reason = str(error)
        return f"no_schema: {' '.join(reason.split())[:160]}" if reason else Constraint(matcher, self._template.end_ids)


def why_not_written(request: Request, grammars: Callable[[], Grammars]) -> str:
    """Why a target that writes can't answer a request; empty where it can. The vocabulary is read only for a schema."""
    if request.choices:
        return WRITES_FREELY
    constraint = grammars().constraint(request.schema) if request.schema is not None else ""
    return constraint if isinstance(constraint, str) else ""
