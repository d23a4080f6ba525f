"""A GGUF file, answered by llama.cpp itself: what is measured is what others will serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, sha256_file
from tuneloop.core.ui import progress
from tuneloop.inference.labels import best_label, label_ids
from tuneloop.inference.llamacpp.process import ENGINE, LlamaCpp, installed, need_llamacpp
from tuneloop.inference.llamacpp.serving import LlamaCppEngine, gguf_file, template_of
from tuneloop.inference.protocol import SCORING, AnswerFit, AnswerSoFar, EngineKind, Kind, ModelTarget
from tuneloop.inference.request import Request, Requests, Separation, Update, fit_checked
from tuneloop.inference.stream import TextStream
from tuneloop.models.chat import Rendered, Template, load_template, with_template
from tuneloop.models.files import read_header
from tuneloop.records.artifact import ARTIFACT, ArtifactManifest
from tuneloop.records.completion import Completion, TokenLogprob
from tuneloop.records.record import read_record

AT_ONCE = 4  # tokens that are written before they are shown


@dataclass
class GgufTarget(ModelTarget):
    """A GGUF file in llama.cpp, which is started when it is first needed."""

    name: str  # as the user gave it
    file: Path  # the weights
    source: str = ""  # chat template that takes the place of the trained one; empty: its own
    adapters: tuple[Path, ...] = ()  # LoRA files that apply to all prompts
    tokenizer: Path | None = None  # folder of the tokenizer and the trained template; None: next to the file, or in it
    kind: ClassVar[Kind] = "model"
    engine: ClassVar[str] = ENGINE

    @cached_property
    def identity(self) -> str:
        """Hash of the file and the template."""
        return content_hash([sha256_file(self.file), self.source, *map(sha256_file, self.adapters)])

    @cached_property
    def llama(self) -> LlamaCpp:
        """llama.cpp with the file."""
        return LlamaCpp(self.file, self.adapters)

    @cached_property
    def template(self) -> Template:
        if self.tokenizer is not None:
            return with_template(load_template(self.tokenizer), self.source)
        return template_of(self.file, self.source)

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.file.parent

    def served_on(self, base: str) -> tuple[str, str | None]:
        """A whole file is its own base. A LoRA file does not name its base: it is on the one that is served.

        Raises:
            UserError: a LoRA file without a base, or on one that was tuned itself.
        """
        if read_header(self.file).fields.get("general.type") != "adapter":
            return self.name, None
        try:
            file = gguf_file(base) if base not in ("", self.name) else None
        except UserError:
            file = None
        export = "export the run as a whole file: tuneloop export RUN --format gguf"
        if file is None:
            message = "An adapter in GGUF answers on its base's GGUF file only"
            raise UserError(message, where=self.name, next_step=f"serve it on that file, base=FILE.gguf; or {export}")
        if (file.parent / ARTIFACT).is_file():
            message = f"A LoRA file adds to the base that it was trained on, and {base} was tuned itself"
            raise UserError(message, where=self.name, next_step=export)
        return base, str(self.file)

    @property
    def context(self) -> int:
        return int(self.llama.facts["context"])

    @property
    def vocabulary(self) -> int:
        """Tokens of the file."""
        return int(self.llama.facts["vocabulary"])

    def load(self) -> None:
        """Start llama.cpp."""
        _ = self.llama, self.template

    def close(self) -> None:
        """End llama.cpp; it is started again when it is needed."""
        if "llama" in self.__dict__:
            self.__dict__.pop("llama").close()

    def complete(self, requests: Requests, *, task: str = "answering") -> Iterator[Completion]:
        """Answers, one after the other; drawn ones by llama.cpp's own samplers, in the order of our engine."""
        progress(task, 0, len(requests))
        for count, request in enumerate(requests, 1):
            *_, last = self.stream(request)
            assert last.completion is not None
            yield last.completion
            progress(task, count, len(requests))

    def stream(self, request: Request) -> Iterator[Update]:
        """An answer in pieces as they come."""
        ready = self.writable(request)
        if isinstance(ready, Completion):
            yield Update(completion=ready)
            return
        ends, text = frozenset(self.template.end_ids), TextStream(self.template.decode, ready.stop)
        answer, over = AnswerSoFar(replace(ready, adapter=""), ENGINE), False
        separated = Separation(ready, self.template)
        for part in self._parts(ready):
            piece = ""
            for number, token in enumerate(part["ids"]):
                answer.ids.append(token)
                if ready.logprobs is not None:
                    logprob, likeliest = part["logprobs"][number]
                    answer.logprobs.append(TokenLogprob(token, logprob, tuple(likeliest)))
                piece += "" if token in ends else text.push(token)
                over = over or token in ends or text.stopped
                if over:
                    break
            if over or len(answer.ids) >= ready.max_new_tokens:
                piece += text.end()
                completion = answer.completion(text.text, "stop" if over else "length")
                completion = fit_checked(ready, completion).result()
                times = {"ttft_ms": round(part["first"], 3), "total_ms": round(part["total"], 3)}
                yield separated(Update(piece, replace(completion, **times)))
                return
            if piece:
                yield separated(Update(piece))

    def _parts(self, request: Request) -> Iterator[dict[str, Any]]:
        """What llama.cpp writes, some tokens at a time, to the end of the answer or of its room."""
        ends, how = sorted(frozenset(self.template.end_ids)), request.sampling
        sampling = None if not how.temperature and how.repetition_penalty == 1 else asdict(how)
        constraint = self.grammars.constraint(request.schema) if request.schema is not None else None
        assert not isinstance(constraint, str), "it was refused before"
        self.llama.begin(request.ids, request.max_new_tokens, sampling, request.logprobs, constraint is not None)
        count = 0
        while True:  # the reader stops at an end
            if constraint is None:
                part = self.llama.more(min(AT_ONCE, request.max_new_tokens - count), ends)
            else:
                part = self.llama.pick(constraint.allowed(self.vocabulary))
                constraint.accept(part["ids"][0])
            count += len(part["ids"])
            yield part

    def fits(self, rows: Sequence[Rendered], *, task: str = "reference answers") -> list[AnswerFit]:
        fits = []
        progress(task, 0, len(rows))
        for count, row in enumerate(rows, 1):
            losses, hits = self.llama.fit(row.ids)
            supervised = [i for i, weight in enumerate(row.mask[1:]) if weight]
            right = bool(supervised) and all(hits[i] for i in supervised)
            fits.append(AnswerFit(sum(losses[i] for i in supervised), len(supervised), right))
            progress(task, count, len(rows))
        return fits

    def score(
        self, requests: Requests, labels: Sequence[str], *, exact: bool = False, lead: str = "", task: str = SCORING
    ) -> Iterator[Completion]:
        """The likeliest label of each request, all of them scored to their ends."""
        opening = self.template.encode(lead) if lead else []
        answers = label_ids(self.template, labels, lead=lead)
        tokens = {label: len(ids) for label, ids in zip(labels, answers, strict=True)}
        progress(task, 0, len(requests))
        for count, request in enumerate(requests, 1):
            ready = self.rendered(request, len(opening) + max(tokens.values()))
            if isinstance(ready, Completion):
                yield ready
            else:
                ids = [*ready.ids, *opening]
                logs = zip(labels, self.llama.score(ids, answers), strict=True)
                yield best_label({label: log / tokens[label] for label, log in logs}, tokens, len(ids), engine=ENGINE)
            progress(task, count, len(requests))


def open_gguf(name: str, template: str = "") -> GgufTarget:
    """A GGUF file, or the folder of an artifact with one; nothing is loaded yet.

    Raises:
        UserError: there is none.
    """
    if Path(name).is_dir() and not list(Path(name).glob("*.gguf")):
        step = f"tuneloop export {name} --format gguf-lora, or take engine=tuneloop"
        raise UserError("llama.cpp serves GGUF files, and this is none", where=name, next_step=step)
    return GgufTarget(name, gguf_file(name), template)


def as_gguf(name: str) -> Path | None:
    """The GGUF file that llama.cpp answers with for a name: a file, or an artifact's; None: it is something else.

    A file alone is read by our own engine where llama.cpp is not installed.

    Raises:
        UserError: an artifact that needs llama.cpp, which is not installed, or one that is an adapter alone.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path if installed() else None
    if not (path / ARTIFACT).is_file():
        return None
    form = read_record(ArtifactManifest, path).format
    if form == "gguf-lora":
        message, step = "An adapter in GGUF answers on its base's GGUF file only", "name the run, or export it as gguf"
        raise UserError(message, where=name, next_step=step)
    if form != "gguf":
        return None
    need_llamacpp()
    return gguf_file(name)


KIND = EngineKind(
    ENGINE,
    claims=lambda name: as_gguf(name) is not None,
    target=lambda name, _, template: open_gguf(name, template),
    template=lambda base: template_of(gguf_file(base)),
    serving=LlamaCppEngine,
)
