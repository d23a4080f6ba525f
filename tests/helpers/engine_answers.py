"""Answers of our engine to several requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tuneloop.inference.local.engine import Engine
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion


def answers_of(engine: Engine, requests: Sequence[Request]) -> Iterator[Completion]:
    """In the order of the requests, each as soon as it and those before it are over."""
    tickets = [engine.submit(request) for request in requests]
    try:
        for ticket in tickets:
            while ticket.completion is None:
                engine.step()
            yield ticket.completion
    finally:
        for ticket in tickets:
            if ticket.completion is None:
                engine.cancel(ticket)
