"""`tuneloop improve`: one pass of the controller over a project: begin a cycle, do its next steps, end it."""

from __future__ import annotations

import contextlib
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, lock_folder, nearest_path, plain, read_yaml
from tuneloop.core.foreign import parse_json
from tuneloop.core.ids import utc_now
from tuneloop.core.parent import environment_of_child
from tuneloop.core.python_file import trust_code
from tuneloop.core.ui import say
from tuneloop.core.units import counted, verb
from tuneloop.improve.collect.command import run_of, settings_of_retraining
from tuneloop.improve.controller import controller
from tuneloop.improve.experiment.state import EVENTS as EXPERIMENTS
from tuneloop.improve.experiment.state import add_event, experiments_of
from tuneloop.improve.experiment.statistics import time_of
from tuneloop.improve.feedback.value import current, gives_answer
from tuneloop.improve.monitor.command import EVENT as MONITORED
from tuneloop.improve.monitor.command import ignored, monitor_if_due
from tuneloop.improve.monitor.detectors import CANARIES
from tuneloop.records.feedback import Feedback, value_of
from tuneloop.records.server import Decision
from tuneloop.registry import registered_name
from tuneloop.serving.store import (
    Database,
    is_database_url,
    keep_password,
    opened,
    read_decisions,
    read_feedback,
    refuse_rewritten,
    store_folder,
    store_name,
)

PER_USER = 20  # answers that one user's feedback counts for, as in `collect`
NO_REASON = {"latency", "cost", CANARIES}  # alarms that another training would not silence
# Names of a step's result that the log keeps.
LOGGED = (
    *("status", "outcome", "sentence", "path", "counts", "with_feedback", "dropped", "version", "chosen", "verdicts"),
)
Command = Callable[[Sequence[str]], tuple[int, dict[str, Any]]]  # words -> exit status and what was printed
Cycles = Sequence[controller.Cycle]


@dataclass(frozen=True)
class ControllerPass:
    """What one pass of the controller came to."""

    state: str  # `idle`, `waiting`, `needs approval`, or `ended`
    sentence: str  # what that means here
    cycle: int | None  # its number; None where none runs
    steps: list[str]  # that were done in this pass


def load_project(path: Path | str) -> controller.ProjectConfig:
    """Read a project's file. Raises UserError: it is missing, no YAML, or a key is wrong."""
    project = build_config(controller.ProjectConfig, read_yaml(path, "project"), where=str(path))
    with contextlib.suppress(UserError):  # which `check_files` reports
        trust_code(read_yaml(Path(project.recipe).expanduser()))  # for the commands that work on its runs
    if is_database_url(project.store):  # the store's place goes into commands, lines and the log
        return project.model_copy(update={"store": keep_password(project.store)})
    return project


def check_files(project: controller.ProjectConfig) -> None:
    """See now, and not in the cycle that needs them, that a project's files are there.

    Raises UserError: the recipe, the suite or the run in use is missing.
    """
    paths = {"recipe": project.recipe, "suite": project.suite, "champion": project.champion}
    if "{recipe}" not in (project.steps.get("train") or ["{recipe}"]):
        paths.pop("recipe")
    for name, path in paths.items():
        if path and registered_name(path) is None and not Path(path).expanduser().exists():
            message, where = f"The project's {name} is not there", f"{name}: {path}"
            raise UserError(message, where=where, next_step=nearest_path(path))


def run_command(arguments: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Run a tuneloop command in its own process, which ends with this one; its log continues to stderr."""
    command = [sys.executable, "-m", "tuneloop", *arguments, "--json"]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=False, env=environment_of_child())
    try:
        result = parse_json(process.stdout.decode("utf-8", "replace").strip().splitlines()[-1])
    except (ValueError, IndexError):
        result = {}
    return process.returncode, result if isinstance(result, dict) else {}


def facts_of(store: Database, model: str, cycles: Cycles, now: str, *, enough: int = 50) -> controller.Facts:
    """The facts from which it is decided whether a cycle begins, except its expected cost.

    Only feedback on known requests to the model counts, and of one user no more than `PER_USER` answers, so that no one
    begins a cycle alone.
    """
    # The sums by day say where to look for the first request.
    query = (
        "SELECT time FROM requests WHERE model = ? AND time >= (SELECT MIN(day) FROM costs WHERE model = ?) "
        "ORDER BY time LIMIT 1"
    )
    first = str((store.execute(query, [model, model]).fetchone() or [now])[0])
    since = cycles[-1].ended if cycles and cycles[-1].ended else first
    windows = read_decisions(store, since=since, where=f"kind = '{MONITORED}'")
    silent = NO_REASON | set(ignored(store, model, now))
    days = (time_of(now) - time_of(since)).total_seconds() / 86_400
    later = since if since > first else ""
    feedback = current(read_feedback(store, since=later, where=_OF_MODEL, values=[model, model], origin=False))
    rated = [(vote, value) for vote in feedback if (value := value_of(vote.kind, vote.value)) is not None]
    bounded = _bounded(vote for vote, _ in rated)
    values = [value for vote, value in rated if id(vote) in bounded]
    in_quarter = [cycle for cycle in cycles if _quarter(cycle.began) == _quarter(now)]
    query = f"SELECT DISTINCT COALESCE(request, conversation) FROM feedback WHERE {_OF_MODEL} LIMIT ?"
    return controller.Facts(
        days=days,
        feedback=len(store.execute(query, [model, model, enough]).fetchall()),
        corrections=len(_bounded(vote for vote in feedback if vote.may_teach() and gives_answer(vote))),
        alarms=sum(bool(set(window.data.get("alarms", ())) - silent) for window in windows),
        requests_per_day=_requests_since(store, model, later) / max(days, 1.0),
        bad=1 - sum(values) / len(values) if values else math.nan,
        spent_usd=sum(cycle.usd for cycle in in_quarter),
        spent_hours=sum(cycle.hours for cycle in in_quarter),
        fixed_shares=tuple(c.fixed_share for c in cycles if c.outcome not in ("", controller.NOTHING_NEW)),
    )


# Feedback on a request or conversation of a model: not on one that is unknown, was erased, or was another model's.
_OF_MODEL = (
    "(request IS NOT NULL AND request IN (SELECT id FROM requests WHERE model = ? AND id = feedback.request)) OR "
    "(request IS NULL AND EXISTS"
    " (SELECT 1 FROM requests WHERE requests.conversation = feedback.conversation AND model = ?))"
)


def _bounded(feedback: Iterable[Feedback]) -> set[int]:
    """Which of these count (by `id()`): one on each request, of at most `PER_USER` requests of each user."""
    seen: dict[str, dict[str, int]] = {}
    for vote in feedback:
        about = vote.request or vote.conversation or ""
        requests = seen.setdefault(vote.user or vote.voice or about, {})
        if about in requests or len(requests) < PER_USER:
            requests[about] = id(vote)
    return {which for requests in seen.values() for which in requests.values()}


def _requests_since(store: Database, model: str, since: str) -> int:
    """Requests of users to a model since a time, or all: whole days by their sums, the first day one by one."""

    def count(query: str, *values: str) -> int:
        return int(store.execute(query, [model, *values]).fetchone()[0] or 0)

    day = since[:10]
    number = count("SELECT SUM(requests) FROM costs WHERE model = ? AND day > ?", day)
    if day:
        number += count("SELECT COUNT(*) FROM requests WHERE model = ? AND time >= ? AND time < ?", since, day + "T99")
    return number - count("SELECT COUNT(*) FROM requests WHERE model = ? AND shadow IS NOT NULL AND time >= ?", since)


def _quarter(time: str) -> tuple[int, int]:
    at = time_of(time)
    return at.year, (at.month - 1) // 3


def planned(project: controller.ProjectConfig, command: Command) -> tuple[float, float]:
    """Hours and dollars that a cycle takes, by `tuneloop plan` of the recipe; NaN where it can't say."""
    _, plan = command(["plan", project.recipe])
    runs = 2 if project.warm_start else 1
    hours = controller.number((plan.get("time") or {}).get("hours")) * runs
    usd = controller.number((plan.get("cost") or {}).get("usd")) * runs
    return hours, hours * project.usd_per_hour if project.usd_per_hour else usd


def improve(project: controller.ProjectConfig, *, approve: str = "", command: Command = run_command) -> ControllerPass:
    """Proceed as far as possible: begin a cycle where there is a reason, and do its steps until one has to wait.

    `approve`: a step that a person approves now; `command`: runs a step's command. Raises UserError: there is no store,
    another controller is at work, a step failed (the next pass tries it again), or there is nothing to approve.
    """
    store_path = store_folder(project.store)
    with opened(project.store) as store, lock_folder(store_path / "improve"):
        if not store.alone(f"improve {project.name}"):
            message = f"Another controller of {project.name} is at work, perhaps on another machine"
            raise UserError(message, where=store_name(project.store), next_step="wait for it, or stop it")
        refuse_rewritten(store, store_name(project.store))
        log = _Log(store, project.name)
        _monitor(project, log.cycles(), store_path / "improve")
        steps: list[str] = []
        if approve:
            log.approve(approve)
        while True:
            cycles = log.cycles()
            if not cycles or cycles[-1].outcome:
                if steps:  # one cycle a pass
                    return ControllerPass("ended", f"{cycles[-1].outcome}: {cycles[-1].why}", cycles[-1].number, steps)
                idle = log.begin(project, cycles, command)
                if idle is not None:
                    return idle
                continue
            step = _next_step(log, cycles, store_path / "improve", command)
            if isinstance(step, ControllerPass):
                return replace(step, steps=steps)
            steps.append(step)


def _monitor(project: controller.ProjectConfig, cycles: Cycles, folder: Path) -> None:
    """Compare the last whole window of production, where the project asks for it and no one has done it."""
    reference = project.monitor.reference
    if reference == "champion":
        champion = controller.champion_of(project, cycles, str(folder))
        reference = str(run_of(champion) / "dataset") if champion else ""
    if not reference:
        return
    settings = {"model": project.model, "window": project.monitor.window, "false_alarms": project.monitor.false_alarms}
    report = monitor_if_due(project.store, reference, settings)
    if report is not None:
        say(f"monitor    {report.since[:10]} to {report.until[:10]}: {report.summary[0]}")


def watch(path: Path | str, *, every: float, command: Command = run_command, passes: int | None = None) -> None:
    """Repeat passes, with a pause after each. What a pass comes to is reported where it is new; an error ends none.

    Args:
        path: of the project's file, which is read again before each pass.
    """
    before = ""
    for i in itertools.count(1):
        try:
            sentence = improve(load_project(path), command=command).sentence
        except UserError as error:
            sentence = f"This pass failed and is tried again: {error.what} ({error.next_step})"
        if sentence != before:
            say(f"{utc_now()[:16].replace('T', ' ')}  {sentence}")
        before = sentence
        if i == passes:
            return
        time.sleep(every)


@dataclass(frozen=True)
class _Log:
    store: Database
    name: str

    def cycles(self) -> list[controller.Cycle]:
        return controller.cycles_of(self.events())

    def events(self) -> list[Decision]:
        where = "kind LIKE 'improve.%' AND subject = ?"
        return list(read_decisions(self.store, where=where, values=[self.name]))

    def add(self, kind: str, key: str, data: Mapping[str, Any]) -> None:
        add_event(self.store, kind, self.name, plain(dict(data)), key=f"{kind}:{self.name}:{key}")

    def begin(self, project: controller.ProjectConfig, cycles: Cycles, command: Command) -> ControllerPass | None:
        """Begin a cycle; where there is no reason, or it is not worth it, say so."""
        now = utc_now()
        facts = facts_of(self.store, project.model, cycles, now, enough=project.triggers.least_feedback)
        if controller.reasons_to_begin(project.triggers, facts) and controller.needs_a_plan(project):
            hours, usd = planned(project, command)
            facts = replace(facts, expected_hours=hours, expected_usd=usd)
        choice = controller.choose(project, facts)
        if not choice.reasons:
            news = f"{counted(round(facts.days), 'day')}, {counted(facts.corrections, 'new correction')}"
            news += f", {counted(facts.alarms, 'window')} with an alarm since the last cycle"
            if facts.feedback < project.triggers.least_feedback:
                news += f"; {counted(facts.feedback, 'request')} {verb(facts.feedback, 'has', 'have')} feedback"
            return ControllerPass("idle", f"Nothing to do: {news}.", None, [])
        number = len(cycles) + 1
        data = {
            "cycle": number, "reasons": choice.reasons, "facts": asdict(facts), "why": choice.why,
            "project": project.model_dump(mode="json"), "gain_usd": choice.gain_usd,
        }  # fmt: skip
        if not choice.begins:  # logged once a day, however often one looks
            self.add(controller.DECLINE, f"{number}:{now[:10]}", data)
            return ControllerPass("idle", f"No cycle, though {'; '.join(choice.reasons)}: {choice.why}.", None, [])
        self.add(controller.START, str(number), data)
        return None

    def approve(self, step: str) -> None:
        cycles = self.cycles()
        waits = bool(cycles) and not cycles[-1].outcome and cycles[-1].waits_for_approval
        if not waits or cycles[-1].next_step != step:
            step_waiting = f"only {cycles[-1].next_step} waits for it" if waits else "no step waits for it"
            raise UserError(f"There is nothing to approve in {step!r:.40}", where="--approve", next_step=step_waiting)
        self.add(controller.APPROVE, f"{cycles[-1].number}:{step}", {"cycle": cycles[-1].number, "step": step})


def _next_step(log: _Log, cycles: Cycles, folder: Path, command: Command) -> ControllerPass | str:
    """Do the next step of the last cycle; returns its name, or why there is none."""
    cycle = cycles[-1]
    step = cycle.next_step
    if cycle.waits_for_approval:
        sentence = f"Cycle {cycle.number} waits for a person: tuneloop improve PROJECT.yaml --approve {step}"
        return ControllerPass("needs approval", sentence, cycle.number, [])
    champion = controller.champion_of(cycle.project, cycles, str(folder))
    if step in ("evaluate", "gate", *controller.STARTS) and not champion:
        subject = "warm_start" if step in controller.STARTS else "The gate"
        raise UserError(
            f"{subject} needs the run in use", where="champion", next_step="champion: FOLDER in the project"
        )
    status, result, hours = _run_step(log, cycle, folder, champion, command)
    if step == "promote":  # the numbers that it follows from are the experiment's
        result = {"sentence": cycle.done.get("decide", {}).get("sentence"), **result}
    follows, outcome, reason = controller.after(cycle.project, step, status, result)
    if status == 0 and not result:  # what a command did is in its result: without one it may have been cut off
        follows, reason = "failed", "its command ended without a result"
    if follows == "failed":
        error = result["error"] if isinstance(result.get("error"), dict) else {}
        subject = f"The step {step} of cycle {cycle.number} failed: {error.get('what') or reason}"
        advice = str(error.get("next") or "put it right; the same command then continues here")
        raise UserError(subject, where=str(error.get("where") or ""), next_step=advice)
    if follows == "wait":
        return ControllerPass("waiting", f"Cycle {cycle.number}, {step}: {reason}", cycle.number, [])
    logged = {name: result[name] for name in LOGGED if name in result}
    difference = ((result.get("evidence") or {}).get("measure") or {}).get("difference")
    if difference is not None:
        logged["difference"] = difference
    data = {"cycle": cycle.number, "step": step, "status": status, "result": logged, "hours": hours}
    data["usd"] = hours * cycle.project.usd_per_hour
    if follows == "end":  # one event: a controller that is killed here has either ended the cycle or not
        log.add(controller.END, str(cycle.number), {**data, "outcome": outcome, "why": reason})
    else:
        log.add(controller.STEP, f"{cycle.number}:{step}", data)
    return step


def _run_step(
    log: _Log, cycle: controller.Cycle, folder: Path, champion: str, command: Command
) -> tuple[int, dict[str, Any], float]:
    """Do a step: its exit status, what it printed, and the hours that it took."""
    step = cycle.next_step
    if step == "experiment" and cycle.experiment in experiments_of(read_decisions(log.store, where=EXPERIMENTS)):
        return 0, {"experiment": cycle.experiment}, 0.0  # begun before the controller was killed
    if step == "choose" and "chosen" in cycle.done["warm_start"]:
        return 0, dict(cycle.done["warm_start"]), 0.0  # there is no other run to choose
    arguments = controller.command_of(cycle, step, folder=str(folder), champion=champion)
    if step not in cycle.project.steps:
        arguments += _step_options(cycle, step, folder / str(cycle.number), champion)
    if step == "decide" and cycle.project.judge:  # what came since the last pass
        state = experiments_of(read_decisions(log.store, where=EXPERIMENTS)).get(cycle.experiment)
        if state is not None and state.in_shadow_mode:
            command(["ab", "judge", cycle.experiment, "--store", cycle.project.store, "--judge", cycle.project.judge])
    say(f"{step:<11}tuneloop {' '.join(arguments)}")
    began = time.monotonic()
    status, result = command(arguments)
    if step in controller.STARTS and status == 2:  # it can't be had: the run from the base continues
        error = result.get("error")
        reason = error.get("what") if isinstance(error, Mapping) else "no reason was given"
        sentence = f"The run from the base continues, the other one can't be had: {reason}"
        status, result = 0, {"chosen": "run", "verdicts": {}, "sentence": sentence}
    elif step == "choose" and status == 0:
        result = _better_start(result)
    return status, result, (time.monotonic() - began) / 3600


def _better_start(result: Mapping[str, Any]) -> dict[str, Any]:
    """Which start measures better on the same test, by the comparison that was written."""
    comparisons = result.get("comparisons") or []
    verdicts = {str(comparison["metric"]): str(comparison["verdict"]) for comparison in comparisons}
    better = controller.better_start(verdicts)
    metrics = "; ".join(
        f"{pair['metric']} {pair['delta']:+.3f} [{pair['low_holm']:+.3f}, {pair['high_holm']:+.3f}] {pair['verdict']}"
        for pair in comparisons[:3]
        if None not in (pair["delta"], pair["low_holm"], pair["high_holm"])
    )
    word = "continues" if better == "warm" else "is not shown to be better, that from the base continues"
    return {"chosen": better, "verdicts": verdicts, "sentence": f"The run from the run in use {word}: {metrics}"}


def _step_options(cycle: controller.Cycle, step: str, folder: Path, champion: str) -> list[str]:
    """A step's further options: the collected rows', and an adapter stays one, so that a server has both arms."""
    if step == "collect":  # with a run in use they are added to its own, in the form that it reads
        return ["--run", champion] if champion else []
    if step in ("train", "warm_start"):
        return settings_of_retraining(folder / "collected")
    if step == "experiment":
        return ["--shadow" if cycle.project.shadow else "--no-shadow"]
    return ["--format", "adapter"] if step == "export" and (folder / cycle.run / "adapter").is_dir() else []


@dataclass(frozen=True)
class Checked:
    """An event of the log, and whether it follows from those before it."""

    time: str
    what: str
    follows: bool


def replay(project: controller.ProjectConfig) -> list[Checked]:
    """Decide again what the controller decided: why cycles began, which step came next, and how they ended.

    Raises UserError: there is no store.
    """
    checks = []
    with opened(project.store) as store:
        events = _Log(store, project.name).events()
    for at, event in enumerate(events):
        cycles, data = controller.cycles_of(events[:at]), event.data
        last = cycles[-1] if cycles and not cycles[-1].outcome else None
        if event.kind in (controller.START, controller.DECLINE):
            old = controller.ProjectConfig.model_validate(data["project"])
            again = controller.choose(old, controller.facts_from(data["facts"]))
            change = f"cycle {data['cycle']} began: {'; '.join(data['reasons'])}"
            follows = last is None and again.begins and list(again.reasons) == data["reasons"]
            if event.kind == controller.DECLINE:
                change = f"cycle {data['cycle']} did not begin: {data['why']}"
                follows = last is None and not again.begins and again.why == data["why"]
        else:
            step = data["step"]
            change, follows = f"{step} was approved", last is not None and last.next_step == step
            if event.kind == controller.STEP:
                change, follows = f"{step} was done", follows and last is not None and not last.waits_for_approval
                if step == "choose":
                    start = controller.better_start(data["result"]["verdicts"])
                    follows = follows and data["result"]["chosen"] == start
            elif event.kind == controller.END:
                change = f"cycle {data['cycle']} ended: {data['outcome']}"
                end = controller.after(last.project, step, data["status"], data["result"]) if last else None
                follows = follows and end == ("end", data["outcome"], data["why"])
        checks.append(Checked(event.time, change, follows))
    return checks
