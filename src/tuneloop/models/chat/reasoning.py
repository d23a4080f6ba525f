"""Reasoning in a text: which part of it a model thinks, and which part is its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

THINK = ("<think>", "</think>")  # of Qwen, DeepSeek, SmolLM3, Granite and nearly all others
CHANNELS = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")  # gpt-oss's, then `FINAL` or a call
TAGS = (THINK, ("[THINK]", "[/THINK]"), CHANNELS)  # the second are Mistral's
FINAL = "<|channel|>final<|message|>"  # what gpt-oss writes in front of its answer
FIELDS = ("reasoning_content", "reasoning")  # of a message, where a server gives it apart


def split_reasoning(text: str, *, opened: bool = False) -> tuple[str | None, str | None]:
    """Reasoning and answer of a text, without the tags and the white space around them.

    Args:
        text: in which a block of reasoning may come first.
        opened: whether the prompt ended with the opening tag, as DeepSeek's templates have it, so that it is not here.

    Returns:
        Reasoning None: there is no block. Answer None: the block is never closed.
    """
    body = text.lstrip()
    opening, closing = next((tags for tags in TAGS if body.startswith(tags[0])), THINK)
    if not (opened or body.startswith(opening)):
        return ("", body.removeprefix(FINAL).strip()) if body.startswith(FINAL) else (None, text)
    reasoning, closed, answer = body.removeprefix(opening).partition(closing)
    return reasoning.strip(), answer.strip().removeprefix(FINAL).strip() if closed else None


def with_tags(reasoning: str) -> str:
    """Reasoning as it is written in front of an answer; empty where there is none."""
    return f"{THINK[0]}\n{reasoning}\n{THINK[1]}\n\n" if reasoning else ""


def is_headless(text: str) -> bool:
    """Whether a text has the end of a block of reasoning and not its beginning: the prompt had that."""
    return any(text.count(closing) == 1 and opening not in text for opening, closing in TAGS)


class ReasoningStream:
    """Takes a text apart as it is written: the pieces together are what `split_reasoning` gives.

    Args:
        opened: see `split_reasoning`.
    """

    def __init__(self, opened: bool = False) -> None:
        self._opened, self._closing = opened, ""  # the tag that is waited for
        self._over = self._began = False  # no reasoning follows; the answer behind it has a character
        self._thinks = False  # whether any reasoning has been given out
        self._held = ""  # what may turn out to be a tag, or white space in front of one
        self._header = ""  # what may turn out to be `FINAL`

    def push(self, piece: str, *, last: bool = False) -> tuple[str, str]:
        """Take the next piece of the text; returns the reasoning and the answer that are certain now."""
        if self._over:
            return "", self._answer(piece, last)
        self._held += piece
        if not self._closing:
            start = self._held.lstrip()
            tags = next((tags for tags in TAGS if start.startswith(tags[0])), None)
            if tags is not None:
                self._closing, self._held = tags[1], start[len(tags[0]) :]
            elif not last and any(opening.startswith(start) for opening in (FINAL, *(tags[0] for tags in TAGS))):
                return "", ""
            elif self._opened:
                self._closing = THINK[1]
            else:
                self._over = self._began = True
                return "", start.removeprefix(FINAL) if start.startswith(FINAL) else self._held
        reasoning, closed, rest = self._held.partition(self._closing)
        if closed:
            self._over = True
        elif not last:
            sizes = range(1, min(len(self._closing), len(reasoning) + 1))
            tag = max((size for size in sizes if self._closing.startswith(reasoning[-size:])), default=0)
            reasoning = reasoning[: len(reasoning) - tag]
        reasoning = reasoning.rstrip() if self._thinks else reasoning.strip()
        self._thinks = self._thinks or bool(reasoning)
        if not closed:  # the white space in front of what follows is still to come
            self._held = self._held[self._held.find(reasoning) + len(reasoning) :] if reasoning else self._held
        return reasoning, self._answer(rest, last)

    def _answer(self, piece: str, last: bool) -> str:
        if self._began:
            return piece
        piece = (self._header + piece).lstrip()
        if FINAL.startswith(piece) and piece != FINAL and not last:
            self._header = piece
            return ""
        self._began = bool(piece)
        return piece.removeprefix(FINAL)


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The reasoning that a server gives apart from the answer, by DeepSeek's name for it or vLLM's."""
    return next((text for name in FIELDS if isinstance(text := message.get(name), str)), "")
