"""Answers of models for the playground, each model in a process of its own: the pages stay small and load no torch.

A question is a line of JSON on the child's stdin; its answer comes as lines on stdout: the prompt as the model reads
it, pieces of text, and at the end what is known of it. A few children stay for the next question.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from tuneloop.core.confined import PAGE, confining
from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_line
from tuneloop.inference import Endpoint

MOST = 3  # models that stay loaded
MODULE = "tuneloop.web.speaker"
_children: dict[tuple[str, str], subprocess.Popen[str]] = {}  # the least recently used first
_lock = threading.Lock()


def ask(target: str, against: str, question: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A model's answer piece by piece: `{"state"}`, `{"prompt"}`, `{"piece"}` ..., then `{"done"}` or `{"error"}`.

    Args:
        target: a run, artifact, model or endpoint, as `tuneloop chat` takes it; `against`: `base` or `few-shot` for
            these in its place; `question`: `text`, or `messages`.
    """
    child = _take((target, against))
    complete = False
    try:
        yield {"state": "loading the model"}
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
        except OSError:
            yield {"error": "The model's process has ended"}
            return
        for line in child.stdout:
            with suppress(ValueError):
                event: dict[str, Any] = parse_line(line)
                complete = "done" in event or "error" in event
                yield event
            if complete:
                return
        yield {"error": "The model's process ended before its answer: it may be out of memory"}
    finally:
        _give_back((target, against), child, complete)


def _take(key: tuple[str, str]) -> subprocess.Popen[str]:
    """The child of a model, which no other question uses meanwhile."""
    with _lock:
        child = _children.pop(key, None)
    if child is not None and child.poll() is None:
        return child
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *key],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **confining(PAGE)},
    )


def _give_back(key: tuple[str, str], child: subprocess.Popen[str], complete: bool) -> None:
    with _lock:
        left = [child]
        if complete and key not in _children and child.poll() is None:
            _children[key] = child
            left = [_children.pop(next(iter(_children))) for _ in range(len(_children) - MOST)]
    _end(left)


def close_all() -> None:
    """End all models."""
    with _lock:
        left = [*_children.values()]
        _children.clear()
    _end(left)


def _end(children: list[subprocess.Popen[str]]) -> None:
    for process in children:
        process.kill()
        process.wait()


def main(target: str, against: str) -> None:
    """The child: answer the questions on stdin until it ends."""

    def say(**event: Any) -> None:
        print(json.dumps(event), flush=True)

    chat: Any = None
    for line in sys.stdin:
        try:
            if chat is None:
                chat = _open(target, against)
            chat.reset()
            question, speaker = parse_line(line), chat.speakers[-1]
            record = chat.question(question["text"]) if "text" in question else question
            say(prompt=chat.rendered(speaker, record))
            began = time.monotonic()
            answer = chat.answer(speaker, record, lambda piece: say(piece=piece))
            say(done=asdict(answer) | {"seconds": time.monotonic() - began})
        except UserError as error:
            say(error=error.what)
        except Exception as error:  # the page says so, and the child stays
            say(error=f"{type(error).__name__}: {str(error)[:200]}")


def _open(target: str, against: str) -> Any:
    """The conversation with a model, which is loaded. Of an endpoint the target is its address and its model."""
    from tuneloop.pipeline.answers import open_chat

    model = ""
    if target.startswith(("http://", "https://")):
        target, _, model = target.partition(" ")
    # No key goes along: a page must not send one to whatever address was typed.
    chat = open_chat(target, against, endpoint=lambda url: Endpoint(url, model, concurrency=1))
    chat.load()
    return chat


if __name__ == "__main__":
    main(*sys.argv[1:3])
