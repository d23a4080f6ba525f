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
from tuneloop.inference.answer import EngineKind, Kind, with_template
from tuneloop.inference.llamacpp import ENGINE, LlamaCpp, installed, need_llamacpp
from tuneloop.inference.llamacpp.engine import LlamaCppEngine, gguf_file, template_of
from tuneloop.inference.local.engine import Update
from tuneloop.inference.local.grammar import Grammars, why_not_written
from tuneloop.inference.local.scoring import AnswerFit, LabelTrie, chosen, label_ids
from tuneloop.inference.local.stream import TextStream
from tuneloop.inference.prompt import label_tree, refused, schema_breach, with_ids
from tuneloop.inference.request import Request
from tuneloop.models.template import Rendered, Template, load_template
from tuneloop.records.artifact import ARTIFACT, ArtifactManifest
from tuneloop.records.completion import Completion, Finish, TokenLogprob
from tuneloop.records.record import read_record

AT_ONCE = 4  # tokens that are written before they are shown


@dataclass
class GgufTarget:
    """A GGUF file in llama.cpp, which is started when it is first needed.

    Args:
        name: as the user gave it.
        file: the weights.
        source: chat template that takes the place of the trained one; empty: its own.
        adapters: LoRA files that apply to all that is asked.
        tokenizer: folder of the tokenizer and the trained template; None: next to the file, or in it.
    """

    name: str
    file: Path
    source: str = ""
    adapters: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    kind: ClassVar[Kind] = "model"
    shares_prompts: ClassVar[bool] = False

    @cached_property
    def identity(self) -> str:
        """Hash of the file and the template."""
        return content_hash([sha256_file(self.file), self.source, *map(sha256_file, self.adapters)])

    @property
    def untuned(self) -> str:
        """Name of the model before it was tuned; empty where nobody says it."""
        manifest = self.file.parent / ARTIFACT
        return read_record(ArtifactManifest, manifest).base.model if manifest.is_file() else ""

    @cached_property
    def llama(self) -> LlamaCpp:
        """llama.cpp with the file."""
        return LlamaCpp(self.file, self.adapters)

    @cached_property
    def template(self) -> Template:
        """Tokenizer and chat template."""
        if self.tokenizer is not None:
            return with_template(load_template(self.tokenizer), self.source)
        return template_of(self.file, self.source)

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.file.parent

    def served_on(self, base: str) -> tuple[str, str | None]:
        """A file does not name its base."""
        return base, None if self.name == base else str(self.file)

    @property
    def context(self) -> int:
        """Tokens that the model reads, its answer included."""
        return int(self.llama.facts["context"])

    def load(self) -> None:
        """Start llama.cpp."""
        _ = self.llama, self.template

    def close(self) -> None:
        """End llama.cpp; it is started again when it is needed."""
        if "llama" in self.__dict__:
            self.__dict__.pop("llama").close()

    def rendered(self, request: Request, room: int = 1) -> Request | Completion:
        """A request with its prompt as tokens, or why it can't be asked; see `with_ids`."""
        return with_ids(self.template, self.context, request, room=room, engine=ENGINE)

    def label_tree(self, labels: Sequence[str], lead: str = "") -> LabelTrie:
        """Labels as the tokens of whole answers; see `prompt.label_tree`."""
        return label_tree(self.template, labels, lead)

    def complete(self, requests: Sequence[Request], *, task: str = "answering") -> Iterator[Completion]:
        """Answers, one after the other; drawn ones by llama.cpp's own samplers, in the order of our engine."""
        progress(task, 0, len(requests))
        for done, request in enumerate(requests, 1):
            *_, last = self.stream(request)
            assert last.completion is not None
            yield last.completion
            progress(task, done, len(requests))

    def stream(self, request: Request) -> Iterator[Update]:
        """An answer in pieces as they come."""
        made = self._writable(request)
        if isinstance(made, Completion):
            yield Update(completion=made)
            return
        ends, text = frozenset(self.template.end_ids), TextStream(self.template.decode, made.stop)
        ids: list[int] = []
        likelihoods: list[TokenLogprob] = []
        over = False
        for said in self._written(made):
            piece = ""
            for number, token in enumerate(said["ids"]):
                ids.append(token)
                if made.logprobs is not None:
                    own, likeliest = said["logprobs"][number]
                    likelihoods.append(TokenLogprob(token, own, tuple(likeliest)))
                piece += "" if token in ends else text.push(token)
                over = over or token in ends or text.stopped
                if over:
                    break
            if over or len(ids) >= made.max_new_tokens:
                finish: Finish = "stop" if over else "length"
                piece += text.end()
                broken = schema_breach(made.schema, text.text) if over and made.schema is not None else ""
                yield Update(piece, Completion(
                    text.text, tuple(ids), "error" if broken else finish, len(made.ids), len(ids),
                    round(said["first"], 3), round(said["total"], 3), error=broken,
                    logprobs=None if made.logprobs is None else tuple(likelihoods), engine=ENGINE,
                ))  # fmt: skip
                return
            if piece:
                yield Update(piece)

    def _written(self, request: Request) -> Iterator[dict[str, Any]]:
        """What llama.cpp writes, some tokens at a time, to the end of the answer or of its room."""
        ends, how = frozenset(self.template.end_ids), request.sampling
        drawn = None if not how.temperature and how.repetition_penalty == 1 else asdict(how)
        held = self.grammars.constraint(request.schema) if request.schema is not None else None
        assert not isinstance(held, str), "it was refused before"
        self.llama.begin(request.ids, request.max_new_tokens, drawn, request.logprobs, held is not None)
        written = 0
        while True:  # whoever reads it stops at an end
            if held is None:
                said = self.llama.more(min(AT_ONCE, request.max_new_tokens - written), sorted(ends))
            else:
                said = self.llama.pick(held.allowed(self.llama.facts["vocabulary"]))
                held.accept(said["ids"][0])
            written += len(said["ids"])
            yield said

    @cached_property
    def grammars(self) -> Grammars:
        """What holds answers to a schema."""
        return Grammars(self.template, self.llama.facts["vocabulary"])

    def _writable(self, request: Request) -> Request | Completion:
        why = why_not_written(request, lambda: self.grammars)
        return refused(request, why, ENGINE) if why else self.rendered(request)

    def fits(self, rows: Sequence[Rendered], *, task: str = "reference answers") -> list[AnswerFit]:
        """How well the model foresees given answers, the supervised tokens of each row."""
        found = []
        progress(task, 0, len(rows))
        for done, row in enumerate(rows, 1):
            losses, hits = self.llama.fit(row.ids)
            supervised = [i for i, weight in enumerate(row.mask[1:]) if weight]
            right = bool(supervised) and all(hits[i] for i in supervised)
            found.append(AnswerFit(sum(losses[i] for i in supervised), len(supervised), right))
            progress(task, done, len(rows))
        return found

    def score(
        self,
        requests: Sequence[Request],
        labels: Sequence[str],
        *,
        exact: bool = False,
        lead: str = "",
        task: str = "scoring labels",
    ) -> Iterator[Completion]:
        """The likeliest label of each request, all of them scored to their ends."""
        template = self.template
        opening = template.encode(lead) if lead else []
        if lead:
            answers = [[*template.encode(f" {label}"), template.end_ids[0]] for label in labels]
        else:
            answers = label_ids(template, labels, [{"role": "user", "content": "x"}])
        tokens = {label: len(ids) for label, ids in zip(labels, answers, strict=True)}
        progress(task, 0, len(requests))
        for done, request in enumerate(requests, 1):
            made = self.rendered(request, len(opening) + max(tokens.values()))
            if isinstance(made, Completion):
                yield made
            else:
                ids = [*made.ids, *opening]
                logs = self.llama.score(ids, answers)
                means = {label: log / tokens[label] for label, log in zip(labels, logs, strict=True)}
                yield replace(chosen(means, tokens, len(ids)), engine=ENGINE)
            progress(task, done, len(requests))


def open_gguf(name: str, template: str = "") -> GgufTarget:
    """A GGUF file, or the folder of an artifact with one; nothing is loaded yet.

    Raises:
        UserError: there is none.
    """
    if Path(name).is_dir() and not list(Path(name).glob("*.gguf")):
        raise UserError(
            "llama.cpp serves GGUF files, and this is none", where=name,
            next_step=f"tuneloop export {name} --format gguf-lora, or take engine=tuneloop",
        )  # fmt: skip
    return GgufTarget(name, gguf_file(name), template)


def as_gguf(name: str) -> Path | None:
    """The GGUF file that llama.cpp answers with for a name: a file, or an artifact in that format; None: it is something else.

    A file by itself is read by our own engine where llama.cpp is not installed.

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
        raise UserError(
            "An adapter in GGUF answers on its base's GGUF file only", where=name,
            next_step="name the run, or export it with --format gguf",
        )  # fmt: skip
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
