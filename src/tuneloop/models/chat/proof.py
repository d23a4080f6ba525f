"""The proof of a model's chat template on rows: what is trained is what a server sends and stops at.

"It answered well in training, and the export writes nonsense" has few causes: another template, a wrong end token, lost
control tokens. Each is one check here. `run` proves the template before it spends, `export` what it wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.models import opened, weight_files
from tuneloop.models.chat.template import Rendered, Template, TemplateError
from tuneloop.records.rows import Message, Row

MOST_ROWS = 200  # that are rendered, evenly spread
MARK = "zqxmark"  # a word that no template has
# What other programs meet and a run here does not: it serves and exports the template and the ends that it trained.
ELSEWHERE = {"default system prompt", "added text", "stops"}
Level = Literal["error", "warn", "ok"]


@dataclass(frozen=True)
class TemplateFinding:
    """What a check found."""

    name: str
    level: Level
    message: str
    remedy: str = ""
    row: str = ""  # id of a row that shows it
    blocks: bool = False  # whether a training on it would be wrong


@dataclass(frozen=True)
class TemplateProof:
    """All checks of a template on rows."""

    model: str
    rows: int  # that were rendered
    findings: list[TemplateFinding]
    # A row's text in pieces, each with its weight in the loss.
    example: list[tuple[str, float]] = field(default_factory=list)

    @property
    def level(self) -> Level:
        """The worst."""
        levels = {finding.level for finding in self.findings}
        return "error" if "error" in levels else "warn" if "warn" in levels else "ok"


@dataclass(frozen=True)
class _Proof:
    """What the checks look at."""

    folder: Path
    template: Template
    rows: Sequence[Row]
    rendered: Sequence[Rendered | str]  # of each row, or why it can't be

    @property
    def pairs(self) -> Iterator[tuple[Row, Rendered]]:
        """Rows that could be rendered."""
        for row, rendering in zip(self.rows, self.rendered, strict=True):
            if isinstance(rendering, Rendered):
                yield row, rendering

    def json(self, name: str) -> dict[str, Any]:
        """A file of the model's folder; empty where there is none."""
        file = self.folder / name
        return read_json_object(file) if file.is_file() else {}

    def text(self, turns: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """A conversation as the template writes it; empty where it refuses."""
        try:
            return self.template.text(turns, tools)
        except TemplateError:
            return ""


def prove_template(folder: Path, template: Template, rows: Sequence[Row], *, name: str = "") -> TemplateProof:
    """Check a template on rows.

    Args:
        folder: the model's, with `config.json`, the tokenizer's files and weights.
        template: as it is trained and served.
        rows: of which `MOST_ROWS` are rendered.
    """
    some = rows if len(rows) <= MOST_ROWS else [rows[i * len(rows) // MOST_ROWS] for i in range(MOST_ROWS)]
    proof = _Proof(folder, template, some, [_rendered(template, row) for row in some])
    findings = [finding for check in CHECKS if (finding := check(proof)) is not None]
    example = next(([*_pieces(template, rendering)] for _, rendering in proof.pairs), [])
    return TemplateProof(name or str(folder), len(some), findings, example)


def refuse_wrong_template(folder: Path, template: Template, rows: Sequence[Row], name: str) -> None:
    """Prove a template before a training spends anything; what it finds is said, what would spoil the training refused.

    Raises:
        UserError: no answer would end, a turn or tools would be dropped, or a server would send another prompt.
    """
    proof = prove_template(folder, template, rows, name=name)
    for finding in proof.findings:
        if finding.blocks:
            where = f"{name}, row {finding.row}" if finding.row else name
            raise UserError(f"The chat template fails: {finding.message}", where=where, next_step=finding.remedy)
        if finding.level != "ok" and finding.name not in ELSEWHERE:
            say(f"warn: chat template: {finding.message}; {finding.remedy}")


def first_difference(template: Template, exported: Template, rows: Sequence[Row]) -> Row | None:
    """The first row that an exported tokenizer and template render otherwise than those that were trained."""
    for row in rows[:MOST_ROWS]:
        trained = _rendered(template, row)
        if isinstance(trained, Rendered) and _rendered(exported, row) != trained:
            return row
    return None


def _rendered(template: Template, row: Row) -> Rendered | str:
    try:
        return template.render(row.messages, row.tools)
    except TemplateError as error:
        return str(error)


def _pieces(template: Template, rendered: Rendered) -> Iterator[tuple[str, float]]:
    """The text of a row in pieces of one weight, control tokens included."""
    start = 0
    for end in range(1, len(rendered.ids) + 1):
        if end == len(rendered.ids) or rendered.mask[end] != rendered.mask[start]:
            yield template.tokenizer.decode(rendered.ids[start:end], skip_special_tokens=False), rendered.mask[start]
            start = end


# --- checks ----------------------------------------------------------------------------------------


def _renders(proof: _Proof) -> TemplateFinding | None:
    failures = [
        (row, reason) for row, reason in zip(proof.rows, proof.rendered, strict=True) if isinstance(reason, str)
    ]
    if not failures:
        return None
    row = failures[0][0]
    most, number = Counter(reason for _, reason in failures).most_common(1)[0]
    message = f"{counted(len(failures), 'row')} of {len(proof.rows):,} can't be rendered; {number:,}: {most}"
    step = "change the rows, or name a template of your own that takes them"
    return TemplateFinding("renders", "error", message, step, row.id, len(failures) == len(proof.rows))


def _ends(proof: _Proof) -> TemplateFinding | None:
    """A row's last trained token must be one that ends a turn, with its weight."""
    for row, rendered in proof.pairs:
        trained = [token for token, weight in zip(rendered.ids, rendered.mask, strict=True) if weight]
        if trained and trained[-1] not in proof.template.end_ids:
            last = proof.template.tokenizer.id_to_token(trained[-1])
            message = f"no end-of-turn token is trained: the last trained token is {last!r}, so answers will not stop"
            return TemplateFinding("ends", "error", message, "end each assistant turn with a token", row.id, True)
    return None


def _stops(proof: _Proof) -> TemplateFinding | None:
    """Other engines stop at `eos_token_id` of `generation_config.json`, else of `config.json`, and at `eos_token`."""
    stated = (proof.json(name).get("eos_token_id") for name in ("generation_config.json", "config.json"))
    eos = next((stated_id for stated_id in stated if stated_id is not None), None)
    stops = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
    name = proof.template.variables.get("eos_token")
    stops |= {proof.template.tokenizer.token_to_id(name)} if name else set()
    ends = {_last_trained(rendered) for _, rendered in proof.pairs} - {None}
    for token in sorted(end for end in ends if end is not None and end not in stops):
        text = proof.template.tokenizer.id_to_token(token)
        message = f"answers end with {text!r}, at which engines that read generation_config.json do not stop"
        step = f"add {token} to eos_token_id in generation_config.json; tuneloop's exports and servers do so"
        return TemplateFinding("stops", "warn", message, step)
    return None


def _last_trained(rendered: Rendered) -> int | None:
    return next((t for t, w in zip(reversed(rendered.ids), reversed(rendered.mask), strict=True) if w), None)


def _bos(proof: _Proof) -> TemplateFinding | None:
    bos = proof.template.tokenizer.token_to_id(proof.template.variables.get("bos_token") or "")
    if bos is None:
        return None
    adds = proof.json("tokenizer_config.json").get("add_bos_token")
    adds = adds or proof.template.tokenizer.encode("x").ids[:1] == [bos]
    for row, rendered in proof.pairs:
        count = next((i for i, token in enumerate(rendered.ids) if token != bos), len(rendered.ids))
        if count > 1 or (adds and not count):
            has = "begin with the opening token twice" if count else "lack the opening token that the tokenizer adds"
            step = "write bos_token once at the beginning of the template"
            return TemplateFinding("bos", "error", f"rows {has}", step, row.id, count > 1)
    return None


def _system(proof: _Proof) -> TemplateFinding | None:
    turns: list[Message] = [{"role": "system", "content": MARK}, {"role": "user", "content": "x"}]
    if MARK in proof.text(turns):
        return None
    with_system = [row for row in proof.rows if row.messages[0]["role"] == "system"]
    problem = "the template drops system turns" if proof.text(turns) else "the template refuses system turns"
    message = (
        f"{problem}; {counted(len(with_system), 'row')} of {len(proof.rows):,} has one" if with_system else problem
    )
    step = "put what it says into the user's turn (data.instruction), or take another template"
    row = with_system[0].id if with_system else ""
    return TemplateFinding("system", "error" if with_system else "warn", message, step, row, bool(with_system))


def _tools(proof: _Proof) -> TemplateFinding | None:
    function = {"name": MARK, "description": "x", "parameters": {"type": "object", "properties": {}, "required": []}}
    tool = {"type": "function", "function": function}
    with_tools = [row for row in proof.rows if row.tools]
    if not with_tools or MARK in proof.text([{"role": "user", "content": "x"}], [tool]):
        return None
    message = f"the template drops tools; {counted(len(with_tools), 'row')} of {len(proof.rows):,} lists some"
    step = "take a template that lists tools"
    return TemplateFinding("tools", "error", message, step, with_tools[0].id, True)


def _default_system(proof: _Proof) -> TemplateFinding | None:
    template, tools = proof.template, next((row.tools for row in proof.rows if row.tools), [])
    defaults = {False: template.default_system, True: template.default_system_with(tools) if tools else ""}
    without = [row for row in proof.rows if row.messages[0]["role"] != "system" and defaults[bool(row.tools)]]
    without = [row for row in without if defaults[bool(row.tools)] in proof.text(row.messages, row.tools)]
    if not without:
        return None
    default = defaults[bool(without[0].tools)]
    message = f"a system prompt is added to {counted(len(without), 'row')} without one: {default[:100]!r}"
    step = "write the system turn into the rows, or take a template without a default"
    return TemplateFinding("default system prompt", "error", message, step, without[0].id)


def _preamble(proof: _Proof) -> TemplateFinding | None:
    if not (added := proof.template.preamble):
        return None
    message = f"a text is written before each system turn: {added[:100]!r}"
    return TemplateFinding("added text", "warn", message, "take a template without it, if you do not want it")


def _date(proof: _Proof) -> TemplateFinding | None:
    """A date makes each day's prompts others than those that were trained."""
    if "strftime_now" not in proof.template.source:
        return None
    today = [datetime.now().strftime(form) for form in ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y")]
    dated = [row for row in proof.rows if any(date in proof.text(row.messages, row.tools) for date in today)]
    if not dated:
        return None
    message = f"today's date is written into {counted(len(dated), 'row')}, so that prompts differ from day to day"
    return TemplateFinding("date", "warn", message, "take a template with a fixed date, or without one", dated[0].id)


def _plain(proof: _Proof) -> TemplateFinding | None:
    if not proof.template.is_plain:
        return None
    message = "the model comes without a chat template (a base model): turns are written as their role and their text"
    return TemplateFinding("no template", "ok", message)


def _rewrites(proof: _Proof) -> TemplateFinding | None:
    """An answer that the template writes otherwise once the conversation continues is read and not trained."""
    pair: list[Message] = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    turns: list[Message] = [{**turn, "content": f"{MARK}{i}"} for i, turn in enumerate([*pair, *pair])]
    learned = _learned_text(proof.template, turns)
    always = bool(learned) and f"{MARK}1" not in learned
    answers, trained, first = 0, 0, ""
    for row, rendered in proof.pairs:
        if len(row.messages) == 1:  # a text without turns
            continue
        of_row = sum(turn["role"] == "assistant" and turn.get("weight") != 0 for turn in row.messages)
        weights = [0.0, *rendered.mask]
        runs = sum(bool(weight) and not before for before, weight in pairwise(weights))
        answers, trained, first = answers + of_row, trained + runs, first or (row.id if runs < of_row else "")
    message = "the template writes earlier turns otherwise once the conversation continues"
    if trained == answers:
        ok = TemplateFinding("earlier turns", "ok", f"{message}; no row has such an answer")
        return ok if always else None
    step = "divide conversations, so that each answer ends a row"
    if f"{MARK}1" in _learned_text(proof.template.with_reasoning(keep=True), turns):
        step += ", or set train.earlier_reasoning=keep and serve with tuneloop"
    message = f"{answers - trained:,} of {answers:,} answers are read and not trained: {message}"
    return TemplateFinding("earlier turns", "warn", message, step, first)


def _reasoning(proof: _Proof) -> TemplateFinding | None:
    with_reasoning = [row for row in proof.rows if any(turn.get("reasoning_content") for turn in row.messages)]
    if not with_reasoning:
        return None
    count = counted(len(with_reasoning), "row")
    if not proof.template.thinks:
        return TemplateFinding("reasoning", "ok", f"the reasoning of {count} is left out (train.reasoning=off)")
    turns: list[Message] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": MARK},
    ]
    if not (learned := _learned_text(proof.template, turns)):
        return None  # the rows that can't be rendered are a finding of their own
    if MARK in learned:
        earlier = "is kept" if proof.template.keeps_reasoning else "is left out"
        message = f"{count} with reasoning, which is trained in last turns; that of earlier ones {earlier}"
        return TemplateFinding("reasoning", "ok", message)
    step = "take a template that writes it, or train without it: train.reasoning=off"
    return TemplateFinding("reasoning", "error", f"the reasoning of {count} is lost", step, with_reasoning[0].id, True)


def _learned_text(template: Template, turns: Sequence[Message]) -> str:
    """What of a conversation is trained; empty where it can't be rendered."""
    try:
        rendered = template.render(turns)
    except TemplateError:
        return ""
    learned = [token for token, weight in zip(rendered.ids, rendered.mask, strict=True) if weight]
    return template.tokenizer.decode(learned, skip_special_tokens=False)  # type: ignore[no-any-return]


def _generation_prompt(proof: _Proof) -> TemplateFinding | None:
    """What a server asks with must be how the trained row begins."""
    for row, rendered in proof.pairs:
        if len(row.messages) < 2:
            continue
        prompt = proof.template.prompt_ids(row.prompt, row.tools)
        if rendered.ids[: len(prompt)] != prompt:
            position = next(
                (i for i, pair in enumerate(zip(prompt, rendered.ids, strict=False)) if pair[0] != pair[1]), 0
            )
            there = proof.template.tokenizer.decode(
                prompt[max(position - 8, 0) : position + 8], skip_special_tokens=False
            )
            message = f"the prompt differs from what was trained, near {there!r}"
            return TemplateFinding("generation prompt", "error", message, "take another template", row.id, True)
    return None


def _padding(proof: _Proof) -> TemplateFinding | None:
    if proof.template.pad_id not in proof.template.end_ids:
        return None
    message = "padding is the token that ends turns: other trainers may mask both away, this one trains the latter"
    return TemplateFinding("padding", "ok", message)


def _embeddings(proof: _Proof) -> TemplateFinding | None:
    """Control tokens of the rows need an embedding that was trained: adapters leave it as it is."""
    added = proof.template.tokenizer.get_added_tokens_decoder()
    used = Counter(token for _, rendered in proof.pairs for token in set(rendered.ids) if token in added)
    rows = _embedding(proof.folder, sorted(used))
    if rows is None:
        return None
    if rows.size and used and max(used) >= rows.total:
        message = f"the tokenizer's {added[max(used)].content!r} is beyond the model's {rows.total:,} embeddings"
        return TemplateFinding("embeddings", "error", message, "use the tokenizer that belongs to the model", "", True)
    untrained = [added[token].content for token in rows.untrained]
    if not untrained:
        return None
    message = f"{', '.join(map(repr, untrained[:5]))} of the rows have embeddings that were never trained"
    step = "start from the Instruct model, train with train.method=full, or take a template of other tokens"
    return TemplateFinding("embeddings", "error", message, step)


@dataclass(frozen=True)
class _Embeddings:
    size: int
    total: int
    untrained: list[int]


def _embedding(folder: Path, tokens: Sequence[int]) -> _Embeddings | None:
    """What the embeddings of tokens look like: a trained one is not near zero, nor the same as another one."""
    if not tokens or not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return None
    for file in weight_files(folder):
        with opened(file) as tensors:
            names = [name for name in tensors.keys() if name.endswith("embed_tokens.weight")]  # noqa: SIM118
            if not names:
                continue
            part = tensors.get_slice(names[0])
            total, size = part.get_shape()
            rows = {token: part[token : token + 1].float()[0] for token in tokens if token < total}
            usual = part[: min(total, 1000)].float().norm(dim=1).median()
            zero = {token for token, row in rows.items() if row.norm() < 1e-2 * usual}
            seen = Counter(row.numpy().tobytes() for row in rows.values())
            same = {token for token, row in rows.items() if seen[row.numpy().tobytes()] > 1}
            return _Embeddings(size, total, sorted(zero | same))
    return None


def _two_templates(proof: _Proof) -> TemplateFinding | None:
    file = proof.folder / "chat_template.jinja"
    stated = proof.json("tokenizer_config.json").get("chat_template")
    if not file.is_file() or not isinstance(stated, str):
        return None
    if stated.strip() == file.read_text(encoding="utf-8", errors="replace").strip():
        return None
    message = "the chat template in tokenizer_config.json differs from chat_template.jinja, which is taken here"
    return TemplateFinding("two templates", "error", message, "delete the one that is not meant")


CHECKS: tuple[Callable[[_Proof], TemplateFinding | None], ...] = (
    _renders, _ends, _stops, _bos, _system, _tools, _default_system, _preamble, _date, _plain, _rewrites,
    _reasoning,    _generation_prompt, _padding, _embeddings, _two_templates,
)  # fmt: skip
