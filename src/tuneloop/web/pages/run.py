"""A run: its report, live while it runs; stop, resume, clone with changes."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from starlette.requests import Request

from tuneloop.agents import Job, job_status
from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.core.foreign import fast_json, lines_of
from tuneloop.evaluation.metrics import metric_text
from tuneloop.records.plan import PLAN
from tuneloop.records.run import ANSWERS, RUN, TrainingStep
from tuneloop.report import page_of, read_run
from tuneloop.report.charts import chart_pair, loss_chart, step_chart
from tuneloop.web.growing import Curves
from tuneloop.web.index import Found
from tuneloop.web.runs import RunLine, asked_steps, curves, holder, run_line
from tuneloop.web.sources import Sources
from tuneloop.web.steer import RunCommand, clone_command, history, resume_command, start, stop

ANSWERS_SHOWN = 4  # of a row, the latest ones
RECENT = 20  # steps whose time says how long the rest takes
SMALL = (
    ("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm, before clipping"),
    ("tokens_per_second", "Tokens a second"), ("memory_gib", "Memory, GiB"),
)  # fmt: skip


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows: what reports of runs do, and what is live."""
    found = sources.find("run", request.path_params["key"])
    page = report_of(sources, found) | live(request, sources)
    if page["line"].state != "finished":
        page |= {"training": {}, "numbers": [], "state": ""}
        page["sections"] = [section for section in page["sections"] if section[0] != "training"]
    elif page["training"]:
        page["training"] = page["training"] | charts_of(curves(sources, found), asked_steps(request.query_params))
    page["commands"], page["clone"] = _commands(sources, found, page["line"].state), f"{found.path.name}-2"
    page["clone_line"], query = "", request.query_params
    if query.get("clone") and not sources.read_only:
        page["clone_line"] = clone_command(sources, found, query["clone"], _changes(query.get("changes", ""))).line
    page |= {"history": history(found.path), "shown": True, "failed": None}
    if Job.file in found.names:
        job = job_status(found.path)
        page["failed"] = job.error
        if job.state == "running" and page["line"].state == "finished":
            page["busy"] = f"Works on it: {job.doing or 'it has just begun'}"
    return page


def report_of(sources: Sources, found: Found) -> dict[str, Any]:
    """What the page of a run shows; of the rows with answers only those that tell the most."""

    def read(found: Found) -> dict[str, Any]:
        page = page_of(read_run(found.path))
        if page["samples"]:
            page["samples"]["rows"] = ""
        return page

    stamp = found.changed if RUN in found.names else (found.changed, curves(sources, found).offset)
    page = dict(sources.index.facts("report", found, stamp, read))
    if not sources.texts:
        page |= {"samples": {}, "config": "", "settings": []}
        page["sections"] = [section for section in page["sections"] if section[0] not in ("samples", "settings")]
    return page


def _commands(sources: Sources, found: Found, state: str) -> dict[str, str]:
    """The command lines of what can be done with it now."""
    lines = {}
    if state == "running" and (pid := holder(found.path)) is not None:
        lines["stop"] = f"kill -TERM {pid}"
    if state == "stopped":
        with suppress(UserError):
            lines["resume"] = resume_command(sources, found).line
    with suppress(UserError):
        same = resume_command(sources, found)
        lines["clone"] = RunCommand(("run", same.words[1]), same.place, found.path).line
    return lines


def live(request: Request, sources: Sources) -> dict[str, Any]:
    """State, numbers and curves of a run as it is now."""
    found = sources.find("run", request.path_params["key"])
    line, kept, part = run_line(sources, found), curves(sources, found), asked_steps(request.query_params)
    return sources.index.facts("live", found, (line, kept.offset, part), lambda found: _live(found, line, kept, part))


def charts_of(kept: Curves, part: tuple[float, float]) -> dict[str, Any]:
    """The curves of a part of the steps, with values for a pointer."""
    steps, validations = kept.between(*part)
    draw, small = (partial(chart, values=True, first=part[0]) for chart in (loss_chart, step_chart))
    return {
        "chart": chart_pair(draw, steps, validations, kept.findings),
        "trio": [(title, chart) for key, title in SMALL if (chart := small(steps, key, title))],
    }


def _live(found: Found, line: RunLine, kept: Curves, part: tuple[float, float]) -> dict[str, Any]:
    answer: dict[str, Any] = {"line": line, "path": found.key, "chart": ""}
    answer |= {name: [] for name in ("numbers_now", "trio", "found", "answers")}
    if line.state == "finished":
        return answer
    steps, _ = kept.between()
    answer |= charts_of(kept, part)
    answer |= {
        "numbers_now": progress_of(found, steps, kept), "found": kept.findings,
        "damaged": kept.damaged, "stage": _stage(found, steps), "answers": developing(found),
    }  # fmt: skip
    return answer


def developing(found: Found) -> list[dict[str, Any]]:
    """Answers to a few validation rows: of each its prompt, reference, and the latest answers by step."""
    rows: dict[int, dict[str, Any]] = {}
    with suppress(OSError):
        for line in lines_of(found.path / ANSWERS, below=found.path):
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # a line that is half written
                value = fast_json(line)
                for at, row in enumerate(value["rows"]):
                    moment = rows.setdefault(at, {"answers": {}})
                    moment |= {name: w.clean(row[name]) for name in ("prompt", "reference")}
                    moment["answers"][value["step"]] = w.clean(row["answer"])
    for moment in rows.values():
        moment["answers"] = sorted(moment["answers"].items())[-ANSWERS_SHOWN:]
    return [*rows.values()]


def _stage(found: Found, steps: list[TrainingStep]) -> str:
    """What a run that has not finished is at, by the files that are there."""
    if steps:
        return "evaluating" if "adapter" in found.names or "model" in found.names else "training"
    for name, stage in ((PLAN, "about to train"), ("baselines", "measuring the baselines"), ("dataset", "preparing")):
        if name in found.names:
            return stage
    return "starting"


def progress_of(found: Found, steps: list[TrainingStep], kept: Curves) -> list[tuple[str, str, str]]:
    """Name, value and detail of what is known now."""
    if not steps:
        return []
    last, recent = steps[-1], steps[-RECENT:]
    planned, usd = planned_of(found)
    numbers = [("step", f"{last.step:,}" + (f" of {planned:,}" if planned else ""), f"epoch {last.epoch:.3g}")]
    numbers.append(("training loss", metric_text(w.number(last.loss)), ""))
    losses = [(loss, v.step) for v in kept.validations.values() if (loss := w.number(v.val_loss)) is not None]
    if losses:
        best, at = min(losses)
        numbers.append(("validation loss", f"{losses[-1][0]:.3f}", f"best {best:.3f} at step {at}"))
    seconds = last.seconds - recent[0].seconds
    if planned and len(recent) > 1 and seconds > 0:
        left = (planned - last.step) * seconds / (len(recent) - 1)
        numbers.append(("to go", w.minutes(max(left, 0.0) / 60), "of training, by its latest steps"))
    numbers.append(("training time", w.minutes(last.seconds / 60), ""))
    if usd:
        numbers.append(("cost so far", w.usd(last.seconds / 3600 * usd), f"at {w.usd(usd)} an hour"))
    return numbers


def planned_of(found: Found) -> tuple[int, float]:
    """Steps that a run is to do, and dollars for an hour; 0: not known."""
    steps, usd = 0, 0.0
    with suppress(UserError, OSError):
        steps = int(
            w.number(read_json_object(found.path / "schedule.json", below=found.path).get("planned_steps")) or 0
        )
    with suppress(UserError, OSError):
        usd = (
            w.number(w.section(read_json_object(found.path / PLAN, below=found.path).get("cost")).get("usd_per_hour"))
            or 0.0
        )
    return steps, usd


def _changes(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Stop, resume or clone the run, once it is confirmed; returns where to go."""
    found = sources.find("run", request.path_params["key"])
    action = form.get("action", "")
    if action == "stop":
        stop(sources, found)
        return sources.url("run", key=found.key, said="It is ending its step and saves a checkpoint.")
    if action == "resume":
        start(sources, resume_command(sources, found), "resume")
        return sources.url("run", key=found.key, said="It is started again and continues from its last checkpoint.")
    if action != "clone":
        raise UserError("There is no such action", where=action[:80])
    changes = _changes(form.get("changes", ""))
    command = clone_command(sources, found, form.get("name", "").strip(), changes)
    if form.get("sure") != "yes":
        return sources.url("run", key=found.key, clone=form.get("name"), changes="\n".join(changes))
    start(sources, command, "clone")
    return sources.url("runs", said=f"Started: {command.line}")
