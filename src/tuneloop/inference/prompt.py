"""A request as token ids: by the template that was trained, and only where there is room for an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.core import json_schema
from tuneloop.inference.local.scoring import LabelTrie, label_ids, label_trie, trie_of_labels
from tuneloop.inference.request import Request
from tuneloop.models.template import Template, TemplateError
from tuneloop.records.completion import ENGINE, Completion


def with_ids(
    template: Template, context: int, request: Request, *, room: int = 1, engine: str = ENGINE
) -> Request | Completion:
    """A request with its prompt as tokens, or why it can't be answered.

    Args:
        context: tokens that the model reads, the answer included.
        room: tokens that must fit behind the prompt.
        engine: that would answer.
    """
    ids = request.ids
    if not (ids or request.messages or request.continues is not None):
        return refused(request, "no_prompt: the request has no turns, no text and no tokens", engine)
    try:
        if not ids and request.continues is not None:
            ids = template.document_ids(request.continues)
        elif not ids:
            ids = template.prompt_ids(list(request.messages), list(map(dict, request.tools)))
    except TemplateError as error:
        return refused(request, f"template_error: {error}", engine)
    if len(ids) + room > context:
        why = f"too_long: {len(ids):,} tokens, and the model reads {context:,} with its answer"
        return refused(request, why, engine)
    return replace(request, ids=ids, max_new_tokens=min(request.max_new_tokens, context - len(ids)))


def refused(request: Request, why: str, engine: str = ENGINE) -> Completion:
    """The completion of a request that gets no answer."""
    return Completion(
        finish="error", prompt_tokens=len(request.ids), error=why, engine=engine, adapter=request.adapter
    )  # fmt: skip


def label_tree(template: Template, labels: Sequence[str], lead: str = "") -> LabelTrie:
    """Labels as the tokens of whole answers, or of the rest of an answer that begins with `lead`."""
    if not lead:  # what stands before an answer does not matter for its tokens
        return trie_of_labels(template, labels, [{"role": "user", "content": "x"}])
    return label_trie(labels, [[*template.encode(f" {label}"), template.end_ids[0]] for label in labels])


def schema_problem(schema: Mapping[str, Any]) -> str:
    """Why answers are not held to a schema; empty where they are, unless an engine has another reason."""
    why = json_schema.schema_problem(schema)
    return f"no_schema: {why}" if why else ""


def schema_breach(schema: Mapping[str, Any], text: str) -> str:
    """How an answer breaks its schema; empty where it does not."""
    try:
        why = json_schema.checker(schema)(json.loads(text))
    except (ValueError, RecursionError):
        return "no_schema: the answer is no JSON"
    except Exception as error:  # of what makes no schema, the libraries have several
        return f"no_schema: the schema can't be used: {' '.join(str(error).split())[:160]}"
    return f"no_schema: the answer breaks its schema: {why}" if why else ""


TREES_KEPT = 64  # different sets of labels whose tokens an engine keeps


class LabelTrees:
    """The tokens of labels, computed once for each set of them: rendering 77 labels takes tens of milliseconds."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[str, ...]], tuple[LabelTrie, list[list[int]]]] = {}

    def of(self, template: Template, labels: tuple[str, ...]) -> tuple[LabelTrie, list[list[int]]]:
        """The tree of labels as answers, and the tokens of each label."""
        key = template.source, labels
        if key not in self._kept:
            ids = label_ids(template, labels, [{"role": "user", "content": "x"}])
            while len(self._kept) >= TREES_KEPT:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = label_trie(labels, ids), ids
        return self._kept[key]
