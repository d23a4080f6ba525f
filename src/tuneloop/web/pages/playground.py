"""Playground: one prompt, or a row of a test split, to several models side by side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from hmac import compare_digest
from typing import Any
from urllib.parse import urlencode

from markupsafe import escape
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.core.units import usd_words
from tuneloop.core.urls import masked
from tuneloop.records.artifact import ARTIFACT
from tuneloop.report.data import row_by_id
from tuneloop.web.pages.run import planned_of
from tuneloop.web.runs import run_lines
from tuneloop.web.sources import Sources
from tuneloop.web.speaker import ask
from tuneloop.web.stores import required
from tuneloop.web.suites import add_to_suite, suites_of

LONGEST = 4000  # characters of a prompt: it is a part of addresses
SHOWN = 50  # runs that can be chosen
MOST = 4  # models that answer at once


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """The form, and a column for each chosen model; without scripts (`wait=yes`) with the answers."""
    query = request.query_params
    text, row, chosen = query.get("text", "").strip(), query.get("row", ""), list(dict.fromkeys(query.getlist("who")))
    if query.get("url", "").strip():
        chosen.append(f"url {query['url'].strip()} {query.get('model', '').strip()}")
    record = _row(sources, row) if row else None
    options = _options(sources)
    # A link of another site may open this page, and must not make it load models and send requests.
    own = compare_digest(query.get("token", "").encode(), sources.token.encode())
    asked = (bool(text) or record is not None) and own and not sources.read_only and sources.files is None
    if len(text) > LONGEST or len(chosen) > MOST:
        raise UserError(f"The prompt is longer than {LONGEST:,} characters, or more than {MOST} models are chosen")
    columns = []
    for who in chosen if asked else ():
        address = urlencode({"who": who, "text": text, "row": row, "token": sources.token})
        events = list(_events(sources, who, text, row)) if query.get("wait") == "yes" else []
        columns.append({"who": who, "name": _name(options, who), "address": address, "events": dict(events)})
    reference = str(record["messages"][-1].get("content") or "") if record else ""
    prompt = str(record["messages"][-2].get("content") or "") if record and len(record["messages"]) > 1 else text
    return {"options": options, "chosen": chosen, "columns": columns, "reference": reference, "prompt": prompt,
            "suites": list(suites_of(sources))}  # fmt: skip


def _options(sources: Sources) -> list[tuple[str, str]]:
    """What can be chosen: value and name."""
    options = []
    for line in [line for line in run_lines(sources) if line.state == "finished"][:SHOWN]:
        options.append((f"run {line.key}", f"{line.place}: tuned"))
        options += [(f"{how} {line.key}", f"{line.place}: {how}") for how in ("base", "few-shot")]
    for found in sources.all("artifact")[:SHOWN]:
        options.append((f"artifact {found.key}", f"artifact {w.clean(found.path.name)}"))
    return options


def _name(options: list[tuple[str, str]], who: str) -> str:
    return dict(options).get(who) or masked(who.removeprefix("url "))


def _row(sources: Sources, reference: str) -> dict[str, Any]:
    """A row that is named by `DATASET:SPLIT:ID`."""
    key, split, id_ = [*reference.split(":"), "", ""][:3]
    row = row_by_id(sources.find("dataset", key).path, split, id_) if split in ("train", "val", "test") else None
    if row is None:
        raise UserError("There is no such row any more", where=reference[:80])
    return row


def _target(sources: Sources, who: str) -> tuple[str, str]:
    """The target and `against` of a choice, as `tuneloop chat` takes them."""
    kind, _, rest = who.partition(" ")
    if kind == "url":
        if not rest.startswith(("http://", "https://")):
            raise UserError("An address begins with http:// or https://", where=masked(rest)[:80])
        return rest, ""
    if kind == "artifact":
        found = sources.find("artifact", rest)
        if ARTIFACT not in found.names:
            raise UserError("This artifact is not complete", where=found.path.name)
        return str(found.path), ""
    if kind not in ("run", "base", "few-shot"):
        raise UserError("There is no such model", where=who[:80])
    return str(sources.find("run", rest).path), "" if kind == "run" else kind


def _events(sources: Sources, who: str, text: str, row: str) -> Generator[tuple[str, str], None, None]:
    """Parts of a column as they come: (name, markup); the text so far each time."""
    question: dict[str, Any] = {"text": text}
    if row:
        question = {"messages": _row(sources, row)["messages"][:-1]}
    so_far = ""
    for event in ask(*_target(sources, who), question):
        if "prompt" in event:
            yield "prompt", str(escape(w.clean(event["prompt"])))
        elif "piece" in event:
            so_far += event["piece"]
            yield "answer", str(escape(w.clean(so_far)))
        elif "state" in event:
            yield "facts", str(escape(event["state"]))
        elif "error" in event:
            yield "facts", str(escape(f"failed: {w.clean(event['error'])}"))
        else:
            yield from _done(event["done"], price_of(sources, who, event["done"]))
    yield "done", ""


def price_of(sources: Sources, who: str, answer: dict[str, Any]) -> float | None:
    """Dollars for an answer, by the planned price of the machine's hour."""
    kind, _, rest = who.partition(" ")
    if kind not in ("run", "base", "few-shot"):
        return None
    return planned_of(sources.find("run", rest))[1] / 3600 * answer["seconds"] or None


def _done(answer: dict[str, Any], usd: float | None) -> Iterator[tuple[str, str]]:
    if answer["error"]:
        yield "facts", str(escape(f"no answer: {w.clean(answer['error'])}"))
        return
    yield "answer", str(escape(w.clean(answer["text"])))
    seconds, tokens = answer["seconds"], answer["tokens"]
    facts = [f"{seconds:.2f} s"]
    if answer["prompt_tokens"]:
        facts.append(f"{answer['prompt_tokens']:,} tokens read")
    if tokens and answer["label"] is None:
        facts.append(f"{tokens:,} written, {tokens / max(seconds, 1e-6):,.1f} tokens/s")
    if usd is not None:
        facts.append(f"{usd_words(1000 * usd)} for a thousand like it")
    shares = answer["probabilities"] or {}
    facts += [f"{w.clean(label)} {100 * share:.1f} %" for label, share in shares.items()]
    yield "facts", str(escape(" · ".join(facts)))


async def stream(request: Request, sources: Sources) -> AsyncIterator[tuple[str, str]]:
    """The events of one column."""
    query = request.query_params
    events = _events(sources, query.get("who", ""), query.get("text", "")[:LONGEST], query.get("row", ""))
    try:
        async for event in iterate_in_threadpool(events):
            yield event
    except UserError as error:
        yield "facts", str(escape(error.what))
        yield "done", ""
    finally:
        events.close()


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Save the prompt with what its answer has to be as a row of a regression suite; returns where to go."""
    suites, name, how = suites_of(sources), form.get("suite", ""), form.get("how", "")
    if name not in suites or how not in ("equals", "contains", "lacks"):
        raise UserError("There is no such suite or condition", where=name[:80], next_step="load the page again")
    value = required(form, "value", "What the answer equals, contains or lacks")
    new = add_to_suite(suites[name], {"prompt": required(form, "prompt", "The prompt"), how: value})
    said = f"Saved to {name}" if new else f"{name} has this row already"
    return sources.url("playground", text=form.get("text", ""), row=form.get("row", ""), said=said)
