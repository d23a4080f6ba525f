"""The local page for reviewers: four addresses over a review's folder. Systems' names never reach the browser."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

from tuneloop.core.access import REVIEW_TOKEN, Access, of_owner, owners_secret
from tuneloop.core.errors import UserError
from tuneloop.core.ui import say
from tuneloop.evaluation.review.items import ReviewFolder, append_vote, read_votes, standing
from tuneloop.records.review import ReviewItem, Vote

if TYPE_CHECKING:
    from fastapi import FastAPI

ABOUT_THE_ROW = "reference is wrong"  # belongs to neither of two answers
TAGS = ("wrong fact", "incomplete", "off topic", "wrong format", "too long", "wrong tone", "unsafe")
LONGEST_CORRECTION = 100_000
LONGEST_BODY = 1_000_000  # bytes
LOCAL = ("127.0.0.1", "localhost", "::1")
# The page is one file: nothing may be loaded, nor sent anywhere else.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Ballot(BaseModel):
    """A vote as the page sends it: of answers left (`a`) and right (`b`), not of systems; a tag is `a: wrong fact`."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    item: str = Field(max_length=64)
    reviewer: str = Field(min_length=1, max_length=60)
    choice: Literal["a", "b", "tie", "both_bad", "rating", "skip"]
    thumb: bool | None = None
    stars: int | None = Field(None, ge=1, le=5)
    tags: list[str] = Field(default_factory=list, max_length=20)
    corrected: str | None = Field(None, max_length=LONGEST_CORRECTION)
    note: str = Field("", max_length=2000)
    seconds: float | None = Field(None, ge=0)


def sides(item: ReviewItem, reviewer: str, seed: int) -> tuple[int, ...]:
    """Places of the item's answers, left to right: shuffled for each item and reviewer, the same at each look."""
    if len(item.answers) < 2:
        return (0,)
    digest = hashlib.sha256(f"{seed}\n{item.id}\n{reviewer}".encode(errors="backslashreplace")).digest()
    return (1, 0) if digest[0] & 1 else (0, 1)


def make_app(review: ReviewFolder, access: Access, *, hosts: tuple[str, ...] = LOCAL) -> FastAPI:
    """The web application over one review; votes are read from disk at each request, so several may run at once.
    `review`: what is reviewed. `access`: without its secret nothing is shown or taken. `hosts`: names under which it
    may be called; other pages in the browser can't reach it under theirs."""
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    items = {item.id: item for item in review.items}
    seed = review.manifest.seed
    page = (files("tuneloop.evaluation.review") / "page.html").read_text(encoding="utf-8")
    app = FastAPI(title="tuneloop review", docs_url=None, redoc_url=None, openapi_url=None)

    def refusal(request: Any) -> Response | None:
        if (opened := access.by_address(request)) is not None:
            return opened
        if access.admitted(request) is None:
            return JSONResponse({"detail": "open the address that tuneloop review printed"}, status_code=401)
        # A page elsewhere can send a form here, but not JSON: the browser would ask us first.
        if request.method == "POST":
            kind, length = (request.headers.get(name, "") for name in ("content-type", "content-length"))
            if not kind.startswith("application/json"):
                return JSONResponse({"detail": "votes are JSON"}, status_code=415)
            if not length.isdigit():
                return JSONResponse({"detail": "a length is needed"}, status_code=411)
            if int(length) > LONGEST_BODY:
                return JSONResponse({"detail": "too long"}, status_code=413)
        return None

    @app.middleware("http")
    async def guarded(request: Any, call_next: Callable[[Any], Any]) -> Any:
        response = refusal(request) or await call_next(request)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = POLICY
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))  # before all else

    def item_of(key: str) -> ReviewItem:
        if key not in items:
            raise HTTPException(404, "no such item")
        return items[key]

    def votes_of(reviewer: str) -> dict[str, Vote]:
        votes, _ = read_votes(review.votes_path)
        return {item: vote for (item, who), vote in standing(votes).items() if who == reviewer}

    @app.get("/", response_class=HTMLResponse)
    def index() -> str:
        return page

    @app.get("/api/session")
    def session(reviewer: str) -> dict[str, Any]:
        votes = votes_of(reviewer.strip())
        return {
            "mode": review.mode,
            "tags": [*TAGS],
            "row_tags": [ABOUT_THE_ROW],
            "items": [{"id": key, "done": key in votes and votes[key].choice != "skip"} for key in items],
        }

    @app.get("/api/items/{key}")
    def item(key: str, reviewer: str) -> dict[str, Any]:
        question, reviewer = item_of(key), reviewer.strip()
        places, vote = sides(question, reviewer, seed), votes_of(reviewer).get(key)
        return {
            "id": key, "messages": question.messages, "answers": [question.answers[i] for i in places],
            "references": question.references, "vote": vote and _ballot_of(vote, [question.systems[i] for i in places]),
        }  # fmt: skip

    @app.post("/api/votes")
    def cast(ballot: Ballot) -> dict[str, Any]:
        question = item_of(ballot.item)
        if (ballot.choice == "rating") == (review.mode == "pairwise") and ballot.choice != "skip":
            raise HTTPException(422, f"this is a {review.mode} review")
        names = [question.systems[i] for i in sides(question, ballot.reviewer, seed)]
        try:
            append_vote(review.votes_path, _vote_of(ballot, names))
        except UserError as error:  # a full disk: the page says so and keeps the vote
            raise HTTPException(507, str(error)) from None
        votes = votes_of(ballot.reviewer)
        return {"saved": True, "done": sum(vote.choice != "skip" for vote in votes.values()), "items": len(items)}

    return app


def _vote_of(ballot: Ballot, names: list[str]) -> Vote:
    of_side = dict(zip(SIDES, names, strict=False))
    parts = ballot.model_dump(include={"item", "reviewer", "choice", "thumb", "stars", "note"})
    if ballot.choice in SIDES:
        parts |= {"choice": "win", "winner": of_side[ballot.choice]}
    parts |= {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "shown": tuple(names),
        "tags": tuple(dict.fromkeys(_renamed(tag[:60], of_side) for tag in ballot.tags if tag)),
        "corrected": ballot.corrected or None,
        "seconds": None if ballot.seconds is None else round(ballot.seconds, 1),
    }
    return Vote(**parts)


SIDES = ("a", "b")


def _renamed(tag: str, names: Mapping[str, str]) -> str:
    """A tag of one of two answers, `WHO: word`, under another name; a tag of a single answer, or of the row, stays."""
    who, colon, word = tag.rpartition(": ")
    return f"{names[who]}: {word}" if colon and len(names) == 2 and who in names else tag


def _ballot_of(vote: Vote, names: list[str]) -> dict[str, Any]:
    choice = vote.choice if vote.winner is None else SIDES[names.index(vote.winner)]
    tags = [_renamed(tag, dict(zip(names, SIDES, strict=False))) for tag in vote.tags]
    return {
        "choice": choice, "thumb": vote.thumb, "stars": vote.stars, "tags": tags, "corrected": vote.corrected,
        "note": vote.note,
    }  # fmt: skip


def serve(review: ReviewFolder, *, host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve the page until interrupted (Ctrl-C, SIGTERM); `say` gets the address, with the secret that opens it, in
    time. `host`: address to listen on; another than this machine's own lets all vote who have the secret; `port`: 0
    takes a free one. Raises UserError: the web packages are missing, the port is taken, or the secret of the
    environment is too short."""
    secret = owners_secret(REVIEW_TOKEN)
    try:
        from tuneloop.core.http_server import GuardedServer, listen

        app = make_app(review, of_owner(secret), hosts=LOCAL if host in LOCAL else ("*",))
    except ImportError as error:
        next_step = "pip install 'tuneloop[serve]' (FastAPI and uvicorn)"
        raise UserError(f"Missing package {error.name}", next_step=next_step) from None
    try:
        listening = listen(host, port)
    except OSError as error:
        message = f"Can't listen on {host}:{port}: {error.strerror}"
        raise UserError(message, where="--port", next_step="choose another, or leave it out") from None
    address = f"[{host}]" if ":" in host else host
    server = GuardedServer(app, log_level="error")
    url = f"http://{address}:{listening.getsockname()[1]}/?{urlencode({'token': secret})}"
    say(f"Review at {url}  (Ctrl-C ends it; votes are kept)")
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
