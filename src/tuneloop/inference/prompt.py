"""What a request asks, as token ids: by the template that was trained, and only where there is room for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tuneloop.inference.request import Request
from tuneloop.models.template import Template, TemplateError
from tuneloop.records.completion import ENGINE, Completion

if TYPE_CHECKING:
    from tuneloop.inference.scoring import LabelTrie


def with_ids(
    template: Template, context: int, request: Request, *, room: int = 1, engine: str = ENGINE
) -> Request | Completion:
    """A request with its prompt as tokens, or why it can't be asked.

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
    from tuneloop.inference.scoring import label_trie, trie_of_labels

    if not lead:  # what stands before an answer does not matter for its tokens
        return trie_of_labels(template, labels, [{"role": "user", "content": "x"}])
    return label_trie(labels, [[*template.encode(f" {label}"), template.end_ids[0]] for label in labels])
